"""How kernels round: they compute in float32, whatever they read and write, except for float64."""

from __future__ import annotations

import torch


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(exact_dtype(tensor.dtype))
