"""Attention over few tokens with packed queries, keys and values, and a packed gradient.

The three projections of a layer's input are then one GEMM, and so is each of its two backward GEMMs: nothing is
split, concatenated or added up in between. The library's attention returns three separate gradients instead.
"""

from typing import Any, Optional, Tuple

import torch
from torch.library import triton_op

from ipu_trainer.compat.torch_acceleration import cudnn_attention
from ipu_trainer.training.acceleration.fused_kernels.operations import NAMESPACE, operations, upcast

# What the kernel was tuned for: one program holds all queries of a head (ViT: 197 tokens, heads of 64).
HEAD_DIM = 64
FEWEST_TOKENS, MOST_TOKENS = 129, 256


def packed_attention(
    packed: torch.Tensor, query_bias: Optional[torch.Tensor], key_bias: Optional[torch.Tensor], scale: float
) -> torch.Tensor:
    """softmax(scale Q K^T) V without a mask.

    packed: (batch, tokens, 3, heads, head_dim), queries, keys and values along the third. Returns (batch, tokens, heads,
    head_dim).
    query_bias, key_bias: (heads * head_dim,), which `packed` already includes, detached. Their gradients are computed here: the
    queries' is the sum of their part of the gradient, and the keys' is 0, for softmax does not change when a key's bias shifts all
    scores of a query.
    """
    output: torch.Tensor = operations.packed_attention(packed, query_bias, key_bias, scale)[0]
    return output


def has_kernel_for(device_type: str, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether packed_attention takes such a `packed`. A CPU takes all."""
    fits = FEWEST_TOKENS <= tokens <= MOST_TOKENS and head_dim == HEAD_DIM and dtype == torch.bfloat16
    return device_type == "cpu" or fits


def _heads_first(packed: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """Three views (batch, heads, tokens, head_dim)."""
    return tuple(packed[:, :, part].transpose(1, 2) for part in range(3))


# On a GPU this is cuDNN's kernel and no Triton kernel, so the compiler has nothing to trace into.
@torch.library.custom_op(
    f"{NAMESPACE}::packed_attention",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor packed, Tensor? query_bias, Tensor? key_bias, float scale) -> (Tensor, Tensor)",
)
def _forward(
    packed: torch.Tensor, query_bias: Optional[torch.Tensor], key_bias: Optional[torch.Tensor], scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The output, (batch, tokens, heads, head_dim), and log-sum-exps of the scores, (batch, heads, tokens)."""
    query, key, value = _heads_first(upcast(packed))
    scores = query @ key.transpose(-1, -2) * scale
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous().to(packed.dtype), scores.logsumexp(-1)


@_forward.register_kernel("cuda")
def _forward_on_gpu(
    packed: torch.Tensor, query_bias: Optional[torch.Tensor], key_bias: Optional[torch.Tensor], scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    query, key, value = _heads_first(packed)
    # cuDNN's is the fastest of torch's for these shapes (docs/experiments.md).
    output, log_sums = cudnn_attention(query, key, value, scale)
    return output.transpose(1, 2).contiguous(), log_sums.reshape(query.shape[:3])


@_forward.register_fake
def _shapes(
    packed: torch.Tensor, query_bias: Optional[torch.Tensor], key_bias: Optional[torch.Tensor], scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    batch, tokens, _, heads, head_dim = packed.shape
    log_sums = packed.new_empty(batch, heads, tokens, dtype=torch.promote_types(packed.dtype, torch.float32))
    return packed.new_empty(batch, tokens, heads, head_dim), log_sums


@triton_op(f"{NAMESPACE}::packed_attention_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor, packed: torch.Tensor, read: torch.Tensor, log_sums: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The gradient of `packed`, in its shape, and the queries' summed over tokens, (batch, heads * head_dim)."""
    if packed.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.packed_attention_backward(gradient, packed, read, log_sums, scale)
    query, key, value = _heads_first(upcast(packed))
    gradient, read = upcast(gradient).transpose(1, 2), upcast(read).transpose(1, 2)
    weights = torch.exp(query @ key.transpose(-1, -2) * scale - log_sums.unsqueeze(-1))
    grad_weights = gradient @ value.transpose(-1, -2)
    grad_scores = weights * (grad_weights - (gradient * read).sum(-1, keepdim=True)) * scale
    parts = (grad_scores @ key, grad_scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ gradient)
    result = torch.stack([part.transpose(1, 2) for part in parts], dim=2)
    return result.to(packed.dtype, copy=True), result[:, :, 0].sum(1).flatten(1)


def _save_for_backward(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, torch.Tensor]) -> None:
    packed, *biases, ctx.scale = inputs
    ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in biases]
    ctx.save_for_backward(packed, *output)


def _differentiate(ctx: Any, gradient: torch.Tensor, _: Any) -> Tuple[Optional[torch.Tensor], ...]:
    packed, read, log_sums = ctx.saved_tensors
    result, sums = operations.packed_attention_backward(gradient, packed, read, log_sums, ctx.scale)
    query_dtype, key_dtype = ctx.bias_dtypes
    return (
        result,
        None if query_dtype is None else sums.sum(0).to(query_dtype),
        None if key_dtype is None else sums.new_zeros(sums.shape[1], dtype=key_dtype),
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
