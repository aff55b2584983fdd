"""Faults of torch versions that change numbers, and the way around each."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from torch import nn
from torch.nn import functional

# torch 2.0.1, CPU: the backward of gelu returns unwritten memory where the gradient is a transposed view and the input
# is not (measured; 2.13 is right). Whisper, wav2vec 2.0 and GroupBERT run into it.
GELU_WANTS_CONTIGUOUS = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1)
_gelu = functional.gelu


def mend(function: Any, result: Any) -> None:
    """Called with every result of a torch function in a model's forward."""
    if GELU_WANTS_CONTIGUOUS and function is _gelu and result.requires_grad:
        result.register_hook(lambda gradient: gradient.contiguous())


@contextlib.contextmanager
def mended(model: nn.Module) -> Iterator[None]:
    """Inside the block gelu is mended wherever `model` calls it, where this torch needs that."""
    if not GELU_WANTS_CONTIGUOUS:
        yield
        return
    # Activation modules of Transformers hold the function itself.
    holders = [(part, name) for part in model.modules() for name, value in vars(part).items() if value is _gelu]
    for part, name in holders:
        setattr(part, name, _mended_gelu)
    functional.gelu = _mended_gelu
    try:
        yield
    finally:
        functional.gelu = _gelu
        for part, name in holders:
            setattr(part, name, _gelu)


def _mended_gelu(*given: Any, **named: Any) -> torch.Tensor:
    result: torch.Tensor = _gelu(*given, **named)
    mend(_gelu, result)
    return result
