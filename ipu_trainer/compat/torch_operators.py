"""torch's operators: their schemas, those without a public name, and the mode that sees each of them; and tensors' memory."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, FrozenSet, Sequence

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

from ipu_trainer.compat.internals import Internal

_TESTS = "tests/compat/test_torch_internals.py"
DISPATCH_MODE = Internal(
    "torch.utils._python_dispatch.TorchDispatchMode",
    "sees every ATen operator, in backward as well; documented, but not exported",
    "2.0",
    "2.13",
    f"{_TESTS}::test_a_dispatch_mode_sees_operators_with_names_and_arguments",
)
SCHEMA = Internal(
    "torch._ops.OpOverload._schema",
    "name and arguments of an ATen operator",
    "2.0",
    "2.13",
    f"{_TESTS}::test_a_dispatch_mode_sees_operators_with_names_and_arguments",
)
NN_FUNCTIONS = Internal(
    "torch._C._nn",
    "torch.nn.functional calls these implementations, which a TorchFunctionMode sees in place of the public function",
    "2.0",
    "2.13",
    f"{_TESTS}::test_functions_are_found_under_every_name",
)
PLAIN_FUNCTIONS = Internal(
    "torch._C.DisableTorchFunction",
    "lets a subclass of Tensor be computed with as a Tensor, without a call of __torch_function__ for each operator",
    "2.0",
    "2.13",
    f"{_TESTS}::test_subclasses_are_plain_tensors_without_torch_function",
)
STORAGE_IDENTITY = Internal(
    "torch.UntypedStorage._cdata",
    "identifies a storage on the meta device, where every address is 0",
    "2.0",
    "2.13",
    f"{_TESTS}::test_views_share_a_storage_on_the_meta_device",
)
VERSION = Internal(
    "torch.Tensor._version",
    "counts in-place writes, through any view",
    "2.0",
    "2.13",
    f"{_TESTS}::test_the_version_counts_writes_through_views",
)


def operator_name(operator: Any) -> str:
    """The name of an ATen operator, without namespace and overload: "addmm"."""
    return operator._schema.name.split("::")[-1]  # type: ignore[no-any-return]


def operator_arguments(operator: Any) -> Sequence[Any]:
    """The declared arguments of an ATen operator, each with `name` and `alias_info`."""
    return operator._schema.arguments  # type: ignore[no-any-return]


def functions_named(*names: str) -> FrozenSet[Callable[..., Any]]:
    """torch's functions of these names, wherever a model can call them: torch, Tensor, nn.functional, the C++ library."""
    homes = (functional, torch, torch.Tensor, getattr(torch._C, "_nn", None))
    found = [getattr(home, name, None) for home in homes for name in names]
    return frozenset(function for function in found if function is not None)


def without_torch_function() -> ContextManager[None]:
    """Inside, subclasses of Tensor are computed with as plain tensors."""
    return torch._C.DisableTorchFunction()  # type: ignore[return-value]


def storage_id(tensor: torch.Tensor) -> int:
    """The same number for tensors that share memory, also on the meta device. Unique while the storage lives."""
    return int(tensor.untyped_storage()._cdata)


def num_writes(tensor: torch.Tensor) -> int:
    """A number that grows with every in-place write into the tensor's memory."""
    return int(tensor._version)
