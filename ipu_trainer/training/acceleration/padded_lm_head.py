"""The product with a vocabulary of an odd size, computed with rows of zeros up to a size that GPUs are fast at.

Tensor cores read rows of 16 bytes. 50,257 numbers in half precision are no whole number of them, and the library of products
falls back to kernels that take six times as long (docs/performance.md). Zeros add nothing to what is left of the product.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import Any, Callable, Iterator, Optional

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.training.layers import is_plain_linear

ALIGNED = 8  # numbers of half precision in 16 bytes: a GPU's products are slow where rows are no multiple of it
_MULTIPLE = 64  # as wide as one tile's step, whatever kernel is chosen


@contextlib.contextmanager
def aligned_output_product(model: nn.Module, backend: str = "inductor") -> Iterator[Optional[nn.Linear]]:
    """Inside the block a product with an unaligned vocabulary is padded and cut again; yields the layer that does it.

    Outputs and gradients are those of the layer, as a view into a wider tensor. Yields None, and changes nothing, for a model
    without output embeddings, of an aligned size, or with a layer that is more than nn.Linear (an adapter, a hook).
    """
    linear = _unaligned_output_of(model)
    if linear is not None:
        linear.forward = _padded_forward(linear, torch.compile(padded_linear, backend=backend))  # type: ignore[method-assign]
    try:
        yield linear
    finally:
        if linear is not None:
            del linear.__dict__["forward"]


def padded_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """functional.linear(hidden, weight, bias), its rows filled up to a multiple of 64 for the product."""
    rows = weight.shape[0]
    missing = -rows % _MULTIPLE
    padded_bias = None if bias is None else functional.pad(bias, (0, missing))
    return functional.linear(hidden, functional.pad(weight, (0, 0, 0, missing)), padded_bias)[..., :rows]


def _padded_forward(linear: nn.Linear, product: Callable[..., torch.Tensor]) -> Any:
    """A bound method: a copy of the model made meanwhile has it with the copy's own weights, a pickled one has its class's."""

    def forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        return product(hidden, self.weight, self.bias)

    return MethodType(forward, linear)


def _unaligned_output_of(model: nn.Module) -> Optional[nn.Linear]:
    find = getattr(model, "get_output_embeddings", None)
    try:
        linear: Any = None if find is None else find()
    except NotImplementedError:
        return None
    return linear if is_plain_linear(linear) and linear.out_features % ALIGNED else None
