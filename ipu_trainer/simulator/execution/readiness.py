"""IPU readiness: what a model does while it is compiled that an IPU cannot do, with the line that did it.

A graph for the IPU has fixed shapes and no values: it is built once, before any data is seen. Reading a value into
Python, or making a tensor whose size depends on values, works in eager PyTorch and fails there. The simulator runs
such a model anyway, so that it can be looked at, and reports every place. What cannot be predicted (whether the model
fits, whether the compiler has every operator, how long it takes) is not guessed.
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
_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_WATCHERS = (os.path.abspath(__file__), os.path.join(_PACKAGE, "watch.py"))
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
    """What is wrong with this call of a torch function, if anything."""
    name = getattr(function, "__name__", "")
    kind, detail = _judge(name, args, kwargs)
    if not kind and isinstance(result, torch.Tensor) and result.dtype not in SUPPORTED_DTYPES:
        kind, detail = "dtype", f"{name} makes a tensor of {result.dtype}, which the device does not have"
    caller = _caller() if kind else None
    return None if caller is None else Finding(kind, detail, *caller)


def _judge(name: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Tuple[str, str]:
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
    """The model's own line: the innermost outside torch. None if poptorch's own operators did it: they may."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _WATCHERS:
        frame = frame.f_back
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE + os.sep):
            return None
        if not file.startswith(_TORCH + os.sep):
            return file, frame.f_lineno
        frame = frame.f_back
    return None
