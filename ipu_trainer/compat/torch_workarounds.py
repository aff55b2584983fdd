"""What a release of torch computes wrongly, and the way around it."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.compat.internals import Internal

# On the CPU the backward of gelu returns unwritten memory where the gradient is a transposed view and the input is not. Whisper,
# wav2vec 2.0 and GroupBERT run into it.
GELU = Internal(
    "torch.nn.functional.gelu",
    "torch 2.0's backward needs a contiguous gradient, and does not make one",
    "2.0",
    "2.0",
    "tests/compat/test_torch_workarounds.py::test_the_gradient_is_that_of_double_precision",
)
GELU_NEEDS_CONTIGUOUS_GRADIENT = GELU.covers_installed()
_gelu = functional.gelu


def ensure_contiguous_gradient(function: Any, result: Any) -> None:
    """Give gelu's result a contiguous gradient. To be called with every result of a torch function in a forward."""
    if GELU_NEEDS_CONTIGUOUS_GRADIENT and function is _gelu and result.requires_grad:
        result.register_hook(lambda gradient: gradient.contiguous())


@contextlib.contextmanager
def contiguous_gelu_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, gelu gets contiguous gradients wherever `model` calls it. No change for releases of torch that need none."""
    if not GELU_NEEDS_CONTIGUOUS_GRADIENT:
        yield
        return
    # Activation modules of Transformers hold the function itself.
    holders = [(part, name) for part in model.modules() for name, value in vars(part).items() if value is _gelu]
    for part, name in holders:
        setattr(part, name, _contiguous_gelu)
    functional.gelu = _contiguous_gelu
    try:
        yield
    finally:
        functional.gelu = _gelu
        for part, name in holders:
            setattr(part, name, _gelu)


def _contiguous_gelu(*given: Any, **named: Any) -> torch.Tensor:
    result: torch.Tensor = _gelu(*given, **named)
    ensure_contiguous_gradient(_gelu, result)
    return result
