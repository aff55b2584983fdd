"""Tensors on their way to a GPU: from pinned memory, while it computes, so that nobody waits for anybody.

A plain `tensor.to("cuda")` first waits until the GPU has done all that it was given. One such copy in a training step is
enough to leave the GPU without work at the start of each.
"""

from __future__ import annotations

from typing import Dict, Sequence, Union

import torch

_copying: Dict[int, torch.cuda.Stream] = {}  # one a GPU


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. On a GPU the copy runs beside what was queued before, and whatever is queued next waits for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    copying = _copying.get(current.device_index)
    if copying is None:
        copying = _copying[current.device_index] = torch.cuda.Stream(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    with torch.cuda.stream(copying):
        there = pinned.to(device, non_blocking=True)
    current.wait_stream(copying)
    there.record_stream(current)
    return there


def constant(values: Union[Sequence[float], Sequence[Sequence[float]]], like: torch.Tensor) -> torch.Tensor:
    """like.new_tensor(values), without waiting for the GPU."""
    return sent(torch.tensor(values, dtype=like.dtype), like.device)
