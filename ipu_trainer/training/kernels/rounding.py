"""How kernels round: they compute in float32, whatever they read and write, and sum many rows in two steps."""

from __future__ import annotations

import torch

ROWS_OF_PART = 256  # whose sum one program makes on a GPU; the parts are summed after it


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(exact_dtype(tensor.dtype))
