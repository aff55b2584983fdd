"""Fused residual add + LayerNorm.

Each tensor passes the GPU's memory once: the backward pass computes all gradients of a row, and its part of the sums for biases and
weights, while it holds the row. A compiler that sees one layer at a time reads and writes memory for every part.
"""

from typing import Any, Optional, Tuple

import torch
from torch.library import triton_op

from ipu_trainer.training.acceleration.fused_kernels.operations import NAMESPACE, operations, upcast

MOST_COLUMNS = 1024  # one program holds whole rows


def residual_norm(
    residual: torch.Tensor,
    product: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    epsilon: float,
    drop_mask: Optional[torch.Tensor] = None,
    norm_before_drop: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(total, normalised): residual + drop_mask * (product + bias) in residual's type, and its layer norm in product's.

    residual, product, total, normalised: (batch, tokens, width); bias, weight, norm_bias: (width,).
    drop_mask: (batch,), the factor of each sample's change, for stochastic depth; None is 1 for all.
    norm_before_drop: the norm reads residual + product + bias, and only the total is masked.
    """
    total, normalised, _, _ = operations.residual_norm(
        residual, product, bias, weight, norm_bias, epsilon, drop_mask, norm_before_drop
    )
    return total, normalised


@triton_op(f"{NAMESPACE}::residual_norm", mutates_args=())
def _forward(
    residual: torch.Tensor,
    product: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    epsilon: float,
    drop_mask: Optional[torch.Tensor],
    norm_before_drop: bool,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """total and normalised, and of each row mean and 1 / standard deviation, (batch, tokens)."""
    if residual.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.residual_norm(
            residual, product, bias, weight, norm_bias, epsilon, drop_mask, norm_before_drop
        )
    change = upcast(product) + upcast(bias)
    total = (upcast(residual) + _masked(change, drop_mask)).to(residual.dtype)
    read = upcast(total) + (change - _masked(change, drop_mask) if norm_before_drop else 0)
    variance, mean = torch.var_mean(read, -1, correction=0)
    scale = torch.rsqrt(variance + epsilon)
    normalised = (read - mean.unsqueeze(-1)) * scale.unsqueeze(-1) * upcast(weight) + upcast(norm_bias)
    return total, normalised.to(product.dtype), mean, scale


def _masked(change: torch.Tensor, drop_mask: Optional[torch.Tensor]) -> torch.Tensor:
    return change if drop_mask is None else change * drop_mask.to(change.dtype)[:, None, None]


@triton_op(f"{NAMESPACE}::residual_norm_backward", mutates_args=())
def _backward(
    grad_total: torch.Tensor,
    grad_normalised: torch.Tensor,
    total: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    drop_mask: Optional[torch.Tensor],
    product: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of residual and product, and partial sums, (parts, 3, width), of those of bias, weight and norm_bias.

    product, bias: given for norm_before_drop with a mask.
    """
    if total.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.residual_norm_backward(
            grad_total, grad_normalised, total, mean, scale, weight, drop_mask, product, bias
        )
    given, scale, read = upcast(grad_normalised), scale.unsqueeze(-1), upcast(total)
    if product is not None and bias is not None:
        change = upcast(product) + upcast(bias)
        read = read + change - _masked(change, drop_mask)
    standard = (read - mean.unsqueeze(-1)) * scale
    weighted = given * upcast(weight)
    along = (weighted * standard).mean(-1, keepdim=True)
    grad_read = (weighted - weighted.mean(-1, keepdim=True) - standard * along) * scale
    grad_residual = upcast(grad_total) + grad_read
    if product is None:
        grad_product = _masked(grad_residual, drop_mask)
    else:
        grad_product = _masked(upcast(grad_total), drop_mask) + grad_read
    sums = [part.flatten(0, -2).sum(0) for part in (grad_product, given * standard, given)]
    grad_product = grad_product.to(grad_normalised.dtype, copy=True)  # outputs of an operator must not alias
    return grad_residual.to(total.dtype), grad_product, torch.stack(sums).unsqueeze(0)


def _save_for_backward(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, ...]) -> None:
    _, product, bias, weight, norm_bias, _, drop_mask, norm_before_drop = inputs
    total, _, mean, scale = output
    ctx.dtypes = (bias.dtype, weight.dtype, norm_bias.dtype)
    also = (product, bias) if norm_before_drop and drop_mask is not None else (None, None)
    ctx.save_for_backward(total, mean, scale, weight, drop_mask, *also)


def _differentiate(ctx: Any, grad_total: torch.Tensor, grad_normalised: torch.Tensor, *_: Any) -> Tuple[Any, ...]:
    # ClassTokenLayer's gradients have other strides; the compiler fuses the copy into the addition before it.
    given = (grad_total.contiguous(), grad_normalised.contiguous())
    grad_residual, grad_product, sums = operations.residual_norm_backward(*given, *ctx.saved_tensors)
    grad_vectors = [part.to(dtype) for part, dtype in zip(sums.sum(0), ctx.dtypes)]
    return (grad_residual, grad_product, *grad_vectors, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
