"""Host-to-device copies that do not block: from pinned memory on a CUDA stream of their own.

A plain `tensor.to("cuda")` returns when the GPU has done all that was queued before. One such copy in a training step leaves
the GPU without work at the start of the next one. On the stream that computes, the copy of a batch of 256 images delays the step by
0.3 to 0.8 ms.
"""

from __future__ import annotations

import functools
from typing import Sequence, Union

import torch


def copy_to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. Returns at once; a GPU copies while it computes what was queued before."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    if not tensor.is_pinned():
        tensor = tensor.pin_memory()
    # "cuda" without an index is the current device.
    number = torch.cuda.current_device() if device.index is None else device.index
    copy_stream, compute_stream = _copy_stream(number), torch.cuda.current_stream(number)
    with torch.cuda.stream(copy_stream):
        copied = tensor.to(device, non_blocking=True)
    compute_stream.wait_stream(copy_stream)
    copied.record_stream(compute_stream)  # its memory is reused after the computation, not after the copy
    return copied


@functools.lru_cache(maxsize=None)
def _copy_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def constant(values: Union[Sequence[float], Sequence[Sequence[float]]], like: torch.Tensor) -> torch.Tensor:
    """like.new_tensor(values), without waiting for the GPU."""
    return copy_to_device(torch.tensor(values, dtype=like.dtype), like.device)
