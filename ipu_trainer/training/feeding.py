"""Tensors on their way to a GPU: from pinned memory, so that nobody waits for it.

A plain `tensor.to("cuda")` returns when the GPU has done all that it was given before. One such copy in a training step is
enough to leave the GPU without work at the start of each.
"""

from __future__ import annotations

from typing import Sequence, Union

import torch


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; a GPU copies it when it gets there, and this call returns at once."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constant(values: Union[Sequence[float], Sequence[Sequence[float]]], like: torch.Tensor) -> torch.Tensor:
    """like.new_tensor(values), without waiting for the GPU."""
    return sent(torch.tensor(values, dtype=like.dtype), like.device)
