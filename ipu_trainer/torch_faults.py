"""Faults of torch versions that change numbers, and the way around each."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

# torch 2.0.1, CPU: the backward of gelu returns unwritten memory where the gradient is a transposed view and the input
# is not (measured; 2.13 is right). Whisper, wav2vec 2.0 and GroupBERT run into it.
_GELU_WANTS_CONTIGUOUS = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1)


def mend(function: Any, result: Any) -> None:
    """Called with every result of a torch function in a model's forward."""
    if _GELU_WANTS_CONTIGUOUS and function is functional.gelu and result.requires_grad:
        result.register_hook(lambda gradient: gradient.contiguous())
