"""The LM-head GEMM of an unaligned vocabulary, padded with zeros to a size that tensor cores are fast at.

Tensor cores read rows of 16 bytes. 50,257 numbers in half precision are not a multiple of that, and cuBLAS falls back to kernels
that take six times as long (docs/performance.md). The padding is cut off again, so logits do not change.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.training.layers import bind_forward, is_plain_linear

ALIGNED = 8  # numbers of half precision in 16 bytes: GEMMs are slow where rows are no multiple of it
_MULTIPLE = 64  # as wide as one tile's step, whatever kernel is chosen


@contextlib.contextmanager
def padded_lm_head(model: nn.Module, backend: str = "inductor") -> Iterator[Optional[nn.Linear]]:
    """Inside the block the GEMM of an unaligned LM head is padded; yields the LM head.

    Outputs are those of the layer, as a view into a wider tensor, and gradients are the same. Yields None, and changes nothing,
    for a model without an LM head, with an aligned one, or with one that is more than nn.Linear (an adapter, a hook).
    """
    linear = _unaligned_lm_head(model)
    if linear is not None:
        product = torch.compile(padded_linear, backend=backend)
        bind_forward(linear, lambda self, hidden: product(hidden, self.weight, self.bias))
    try:
        yield linear
    finally:
        if linear is not None:
            del linear.__dict__["forward"]


def padded_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """functional.linear(hidden, weight, bias), computed with the weight padded to a multiple of 64 rows."""
    rows = weight.shape[0]
    missing = -rows % _MULTIPLE
    padded_bias = None if bias is None else functional.pad(bias, (0, missing))
    return functional.linear(hidden, functional.pad(weight, (0, 0, 0, missing)), padded_bias)[..., :rows]


def _unaligned_lm_head(model: nn.Module) -> Optional[nn.Linear]:
    find = getattr(model, "get_output_embeddings", None)
    try:
        linear: Any = None if find is None else find()
    except NotImplementedError:
        return None
    return linear if is_plain_linear(linear) and linear.out_features % ALIGNED else None
