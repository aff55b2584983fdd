"""poptorch._impl: private names of poptorch that programs use.

optimum-graphcore's sequence-to-sequence trainer unwraps a model around generate().
"""

from __future__ import annotations

import weakref
from typing import Any, Dict, List, Tuple, Type

import torch

from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.forward.context import context, isRunningOnIpu
from ipu_trainer.simulator.forward.observer import CompilationObserver
from ipu_trainer.simulator.state.wrapped_model import is_wrapped, unwrap

__all__ = [
    "createPoptorchError",
    "isDispatchTracing",
    "isRunningOnIpu",
    "isWrapped",
    "rewrapModelIfNecessary",
    "unwrapModelIfNecessary",
]

# id of a model -> it and its tensors, with their wrapper classes
_unwrapped: Dict[int, List[Tuple[Any, Type[Any]]]] = {}

isWrapped = is_wrapped


def isDispatchTracing() -> bool:
    """Whether a model is being compiled right now."""
    return isinstance(context.observer, CompilationObserver)


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Restore the classes of the model and its tensors, until rewrapModelIfNecessary()."""
    wrappers = []
    for obj in [*model.buffers(), *model.parameters(), model]:
        if is_wrapped(obj):
            wrappers.append((weakref.ref(obj), type(obj)))
            unwrap(obj)
    if wrappers:
        _unwrapped[id(model)] = wrappers


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Undo unwrapModelIfNecessary()."""
    for reference, wrapper in _unwrapped.pop(id(model), []):
        obj = reference()
        if obj is not None:
            object.__setattr__(obj, "__class__", wrapper)
