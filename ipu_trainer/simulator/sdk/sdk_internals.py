"""Private names of poptorch that programs use all the same: poptorch._impl and poptorch._poplar_executor.

Kept because optimum-graphcore does: its sequence-to-sequence trainer takes the wrapper off a model around generate().
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

# id of a model -> the classes that were taken off it and its tensors
_taken_off: Dict[int, List[Tuple[Any, Type[Any]]]] = {}

isWrapped = is_wrapped


def isDispatchTracing() -> bool:
    """Whether a model is being compiled right now."""
    return isinstance(context.observer, CompilationObserver)


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give the model and its tensors their own classes, until rewrapModelIfNecessary()."""
    taken = []
    for obj in [*model.buffers(), *model.parameters(), model]:
        if is_wrapped(obj):
            taken.append((weakref.ref(obj), type(obj)))
            unwrap(obj)
    if taken:
        _taken_off[id(model)] = taken


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Put back what unwrapModelIfNecessary() took off."""
    for reference, wrapper in _taken_off.pop(id(model), []):
        obj = reference()
        if obj is not None:
            object.__setattr__(obj, "__class__", wrapper)
