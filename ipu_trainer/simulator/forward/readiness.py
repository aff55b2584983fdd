"""IPU readiness: what a model does during compilation that an IPU cannot do, with the line of code.

A graph for the IPU has fixed shapes and no values: it is built once, before there is data. Reading a value into Python,
or making a tensor whose size depends on values, works in eager PyTorch and fails there. The simulator runs such a model
all the same and reports every place. It does not guess whether the model fits, whether the compiler has every operator,
or how long it takes.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

_READS_A_VALUE = {
    "item": "reads a value into Python",
    "tolist": "reads values into Python",
    "numpy": "reads values into Python",
    "__array__": "reads values into Python",
    "__bool__": "decides in Python on a value",
    "__int__": "reads a value into Python",
    "__float__": "reads a value into Python",
    "__index__": "reads a value into Python",
}
_SHAPE_DEPENDS_ON_VALUES = {
    "nonzero": "its size is the number of non-zero elements",
    "argwhere": "its size is the number of non-zero elements",
    "masked_select": "its size is the number of true elements",
    "unique": "its size is the number of distinct values",
    "unique_consecutive": "its size is the number of distinct values",
    "bincount": "its size is the largest value plus one, unless minlength is larger",
    "repeat_interleave": "its size is the sum of the repeats",
}
# Types of tensors on the device; 64-bit ones become 32-bit. Source: PopTorch user guide, "Supported types".
SUPPORTED_DTYPES = frozenset(
    (
        torch.float32,
        torch.float16,
        torch.float64,
        torch.int32,
        torch.int64,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
)
_HERE = os.path.dirname(os.path.abspath(__file__))
_OBSERVERS = (os.path.abspath(__file__), os.path.join(_HERE, "observer.py"))
_SIMULATOR = os.path.dirname(_HERE)
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the device cannot do: what kind, what exactly, and where the model does it."""

    kind: str  # "value read", "dynamic shape" or "dtype"
    detail: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.detail}"


def inspect_call(function: Any, args: Sequence[Any], kwargs: Dict[str, Any], result: Any) -> Optional[Finding]:
    """What the device cannot do of this call of a torch function; None if it can."""
    name = getattr(function, "__name__", "")
    kind, detail = _classify(name, args, kwargs)
    if not kind and isinstance(result, torch.Tensor) and result.dtype not in SUPPORTED_DTYPES:
        kind, detail = "dtype", f"{name} makes a tensor of {result.dtype}, which the device does not have"
    caller = _caller() if kind else None
    return None if caller is None else Finding(kind, detail, *caller)


def _classify(name: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Tuple[str, str]:
    if name in _READS_A_VALUE:
        return "value read", f"{name} {_READS_A_VALUE[name]}; the graph is built before there are values"
    if name == "where" and len(args) + len(kwargs) == 1:
        return "dynamic shape", "where(condition): its size is the number of true elements"
    if name == "repeat_interleave":
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else args[0] if args else None)
        if kwargs.get("output_size") is not None or not isinstance(repeats, torch.Tensor):
            return "", ""
    if name in _SHAPE_DEPENDS_ON_VALUES:
        return "dynamic shape", f"{name}: {_SHAPE_DEPENDS_ON_VALUES[name]}"
    if name == "__getitem__" and len(args) > 1 and _has_mask(args[1]):
        return "dynamic shape", "indexing with a mask: its size is the number of true elements; use torch.where"
    return "", ""


def _has_mask(index: Any) -> bool:
    indices: List[Any] = list(index) if isinstance(index, tuple) else [index]
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) and i.dim() > 0 for i in indices)


def _caller() -> Optional[Tuple[str, int]]:
    """The innermost line outside of torch, which is the model's. None inside the simulator: its operators may do it."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _OBSERVERS:
        frame = frame.f_back
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_SIMULATOR + os.sep):
            return None
        if not file.startswith(_TORCH + os.sep):
            return file, frame.f_lineno
        frame = frame.f_back
    return None
