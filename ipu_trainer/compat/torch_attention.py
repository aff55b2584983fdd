"""cuDNN's attention with its log-sum-exps."""

from __future__ import annotations

from typing import Tuple

import torch

from ipu_trainer.compat.internals import Internal

CUDNN_ATTENTION = Internal(
    "torch.ops.aten._scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention() does not return log-sum-exps, which a backward pass of one's own reads",
    "2.6",
    "2.13",
    "tests/training/test_fused_kernels.py::test_the_gpus_attention_is_as_exact_as_the_librarys",
)


def has_cudnn_attention() -> bool:
    return hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention") and CUDNN_ATTENTION.is_known()


def cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale Q K^T) V, (batch, heads, tokens, head_dim) as its arguments, and log-sum-exps of the scores."""
    output, log_sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, scale=scale
    )
    return output, log_sums
