"""A layer's sum and the layer norm that reads it, as one operation.

Sums, products and their gradients pass a GPU's memory once each way, and the backward pass makes all of a row's gradients and what
is summed over rows (of biases and weights) while it has the row. A compiler sees one layer at a time and goes through memory for
every part.
"""

from typing import Any, Optional, Tuple

import torch
from torch.library import triton_op

from ipu_trainer.training.acceleration.fused_kernels.operations import NAMESPACE, operations
from ipu_trainer.training.acceleration.fused_kernels.rounding import exact

MOST_COLUMNS = 1024  # one program holds whole rows


def residual_norm(
    residual: torch.Tensor,
    product: torch.Tensor,
    bias: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    epsilon: float,
    kept: Optional[torch.Tensor] = None,
    reads_all: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(total, normalised): residual + kept * (product + bias) in residual's type, and its layer norm in product's.

    residual, product, total, normalised: (batch, tokens, width); bias, weight, norm_bias: (width,).
    kept: (batch,), how much a sample's change counts, for stochastic depth; None is 1 for all.
    reads_all: the norm reads residual + product + bias of all samples, whatever is kept of it.
    """
    total, normalised, _, _ = operations.residual_norm(
        residual, product, bias, weight, norm_bias, epsilon, kept, reads_all
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
    kept: Optional[torch.Tensor],
    reads_all: bool,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two, and of each row mean and 1 / standard deviation, (batch, tokens)."""
    if residual.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.residual_norm(residual, product, bias, weight, norm_bias, epsilon, kept, reads_all)
    change = exact(product) + exact(bias)
    total = (exact(residual) + _kept_of(change, kept)).to(residual.dtype)
    read = exact(total) + (change - _kept_of(change, kept) if reads_all else 0)
    variance, mean = torch.var_mean(read, -1, correction=0)
    scale = torch.rsqrt(variance + epsilon)
    normalised = (read - mean.unsqueeze(-1)) * scale.unsqueeze(-1) * exact(weight) + exact(norm_bias)
    return total, normalised.to(product.dtype), mean, scale


def _kept_of(change: torch.Tensor, kept: Optional[torch.Tensor]) -> torch.Tensor:
    return change if kept is None else change * kept.to(change.dtype)[:, None, None]


@triton_op(f"{NAMESPACE}::residual_norm_backward", mutates_args=())
def _backward(
    of_total: torch.Tensor,
    of_normalised: torch.Tensor,
    total: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    kept: Optional[torch.Tensor],
    product: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of residual and product, and in parts, (parts, 3, width), still to be summed, of bias, weight and norm_bias.

    product and bias: where the norm read all that they add.
    """
    if total.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.residual_norm_backward(
            of_total, of_normalised, total, mean, scale, weight, kept, product, bias
        )
    given, scale, read = exact(of_normalised), scale.unsqueeze(-1), exact(total)
    if product is not None and bias is not None:
        change = exact(product) + exact(bias)
        read = read + change - _kept_of(change, kept)
    standard = (read - mean.unsqueeze(-1)) * scale
    weighted = given * exact(weight)
    along = (weighted * standard).mean(-1, keepdim=True)
    of_read = (weighted - weighted.mean(-1, keepdim=True) - standard * along) * scale
    of_residual = exact(of_total) + of_read
    if product is None:
        of_product = _kept_of(of_residual, kept)
    else:
        of_product = _kept_of(exact(of_total), kept) + of_read
    sums = [part.flatten(0, -2).sum(0) for part in (of_product, given * standard, given)]
    made = of_product.to(of_normalised.dtype, copy=True)  # never the same tensor as the other
    return of_residual.to(total.dtype), made, torch.stack(sums).unsqueeze(0)


def _keep(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[torch.Tensor, ...]) -> None:
    _, product, bias, weight, norm_bias, _, kept, reads_all = inputs
    total, _, mean, scale = output
    ctx.dtypes = (bias.dtype, weight.dtype, norm_bias.dtype)
    also = (product, bias) if reads_all and kept is not None else (None, None)
    ctx.save_for_backward(total, mean, scale, weight, kept, *also)


def _pull_back(ctx: Any, of_total: torch.Tensor, of_normalised: torch.Tensor, *_: Any) -> Tuple[Any, ...]:
    # A class token's layer gives gradients in another order; a compiler writes them in this one while it adds them up.
    given = (of_total.contiguous(), of_normalised.contiguous())
    of_residual, of_product, sums = operations.residual_norm_backward(*given, *ctx.saved_tensors)
    of_vectors = [part.to(dtype) for part, dtype in zip(sums.sum(0), ctx.dtypes)]
    return (of_residual, of_product, *of_vectors, None, None, None)


_forward.register_autograd(_pull_back, setup_context=_keep)
