"""torch's modules and optimizers: the dictionaries in which they keep parameters, buffers, children, hooks and steps."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch

from ipu_trainer.compat.internals import Internal

_TESTS = "tests/compat/test_torch_internals.py"
TENSORS = Internal(
    "torch.nn.Module._parameters",
    "with _buffers: a tied weight has several homes, and the public iterators name one",
    "2.0",
    "2.13",
    f"{_TESTS}::test_tensors_of_a_module_can_be_exchanged_in_place",
)
CHILDREN = Internal(
    "torch.nn.Module._modules",
    "named_children() leaves out a child that is None or was seen before",
    "2.0",
    "2.13",
    f"{_TESTS}::test_children_include_absent_and_repeated_ones",
)
PRE_HOOKS = Internal(
    "torch.nn.Module._forward_pre_hooks",
    "hooks can only be removed through the handle that registering them returned",
    "2.0",
    "2.13",
    f"{_TESTS}::test_pre_hooks_can_be_listed_and_removed",
)

OPTIMIZER_STEPS = Internal(
    "torch.optim.Optimizer._step_count",
    "with _opt_called: a scheduler warns where its optimizer was not seen to step",
    "2.0",
    "2.13",
    "tests/training/test_on_device.py::test_optimizers_and_schedulers_that_are_given_are_used",
)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Let schedulers see a step of an optimizer whose update was made elsewhere."""
    state = vars(optimizer)
    state.update(_opt_called=True, _step_count=state.get("_step_count", 0) + 1)


def own_tensors(module: torch.nn.Module) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The module's own parameters and buffers by name, None where absent. Writing to them writes to the module."""
    return module._parameters, module._buffers


def own_children(module: torch.nn.Module) -> Dict[str, Optional[torch.nn.Module]]:
    """Every child by name, also where it is None, or the child of another name too."""
    return module._modules


def forward_pre_hooks(module: torch.nn.Module) -> Dict[int, Any]:
    """The module's forward pre-hooks by number. Deleting one unregisters it."""
    return module._forward_pre_hooks
