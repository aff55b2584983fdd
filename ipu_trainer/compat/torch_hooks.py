"""Hooks that are registered on torch's modules."""

from __future__ import annotations

from typing import Any, List, Tuple

from torch import nn

from ipu_trainer.compat.internals import Internal

_TEST = "tests/training/test_stochastic_depth.py::test_hooks_of_every_kind_are_seen"
HOOKS = Internal(
    "torch.nn.Module._forward_hooks",
    "hooks have no public list; _forward_pre_hooks, _backward_hooks and _backward_pre_hooks hold the other kinds",
    "2.0",
    "2.13",
    _TEST,
)
GLOBAL_HOOKS = Internal(
    "torch.nn.modules.module._global_forward_hooks", "as HOOKS, for hooks on all modules", "2.0", "2.13", _TEST
)


def forward_hooks(module: nn.Module) -> List[Any]:
    """The module's forward hooks, in the order in which they are called."""
    return list(module._forward_hooks.values())


def has_hooks(module: nn.Module, apart_from: Tuple[type, ...] = ()) -> bool:
    """Whether a hook of any kind, forward or backward, is registered on the module. Types in `apart_from` do not count."""
    kinds = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(not isinstance(hook, apart_from) for hooks in kinds for hook in hooks.values())


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules."""
    of_all = nn.modules.module
    return bool(
        of_all._global_forward_hooks
        or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
    )
