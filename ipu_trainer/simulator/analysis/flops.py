"""Floating-point operations of torch's products, from the shapes of their arguments. A multiply-add is two.

torch.utils.flop_counter does the same from torch 2.1 on; the Pod stack has 2.0.1. Element-wise work is left out, as
it is there: on matrix hardware it costs memory traffic, not arithmetic.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Sequence

import torch

from ipu_trainer.compat.torch_operators import operator_name


def flops_of(function: Any, args: Sequence[Any], result: Any) -> int:
    """FLOPs of one call of an ATen operator; 0 for everything that is not a product."""
    name = operator_name(function)
    count = _COUNTS.get(name)
    if count is None and name.startswith("_scaled_dot_product") and "backward" not in name:
        count = _attention
    return 0 if count is None else count(args, result)


def _mm(args: Sequence[Any], result: Any) -> int:
    return 2 * int(args[0].shape[0] * args[0].shape[1] * args[1].shape[1])


def _addmm(args: Sequence[Any], result: Any) -> int:
    return _mm(args[1:], result)


def _bmm(args: Sequence[Any], result: Any) -> int:
    batch, rows, inner = args[0].shape
    return 2 * int(batch * rows * inner * args[1].shape[2])


def _baddbmm(args: Sequence[Any], result: Any) -> int:
    return _bmm(args[1:], result)


def _convolution(args: Sequence[Any], result: Any) -> int:
    weight = args[
        1
    ]  # (out channels, in channels per group, *kernel), transposed: (in channels, out per group, *kernel)
    transposed = bool(args[6]) if len(args) > 6 else False
    positions = args[0] if transposed else result
    return 2 * int(positions.numel() * math.prod(weight.shape[1:]))


def _attention(args: Sequence[Any], result: Any) -> int:
    query, key, value = args[:3]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * int(pairs * (query.shape[-1] + value.shape[-1]))


_COUNTS: Dict[str, Callable[[Sequence[Any], Any], int]] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "convolution": _convolution,
    "_convolution": _convolution,
}


# 64-bit types are 32-bit ones on the device.
_ELEMENT_BYTES = {torch.int64: 4, torch.float64: 4}


def device_bytes(tensor: torch.Tensor) -> int:
    """Bytes that the tensor's elements take on the device. An expanded tensor counts what is behind it."""
    size = _ELEMENT_BYTES.get(tensor.dtype, tensor.element_size())
    behind = tensor.untyped_storage().nbytes() // tensor.element_size()
    return min(tensor.numel(), behind) * size
