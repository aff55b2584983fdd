"""In which type a kernel computes: float32, whatever it reads and writes, and float64 for float64."""

from __future__ import annotations

import torch


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(exact_dtype(tensor.dtype))
