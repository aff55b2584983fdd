"""gelu(product + bias), whose backward pass reads the gradient once: for the product's and for the bias's.

A compiler makes two passes over it, one for the elements and one for the sum over samples, and a GPU is bound by memory there.
"""

from __future__ import annotations

import math
from typing import Any, Tuple

import torch
from torch.nn import functional

from ipu_trainer.training.kernels.operations import NAMESPACE, operations
from ipu_trainer.training.kernels.rounding import ROWS_OF_PART, exact, exact_dtype


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The exact gelu (by erf) of product + bias. product: (..., width), bias: (width,)."""
    result: torch.Tensor = operations.bias_gelu(product, bias)
    return result


@torch.library.custom_op(
    f"{NAMESPACE}::bias_gelu",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor product, Tensor bias) -> Tensor",
)
def _forward(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.gelu(exact(product) + exact(bias)).to(product.dtype)


@_forward.register_kernel("cuda")
def _forward_on_gpu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from ipu_trainer.training.kernels import triton_kernels

    return triton_kernels.bias_gelu(product, bias)


@_forward.register_fake
def _shape(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return product.new_empty(product.shape)


@torch.library.custom_op(
    f"{NAMESPACE}::bias_gelu_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor gradient, Tensor product, Tensor bias) -> (Tensor, Tensor)",
)
def _backward(gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """The product's gradient, and the bias's in parts, (parts, width), still to be summed."""
    hidden = exact(product) + exact(bias)
    share = 0.5 * (1 + torch.erf(hidden * math.sqrt(0.5)))
    density = torch.exp(-0.5 * hidden * hidden) / math.sqrt(2 * math.pi)
    of_hidden = exact(gradient) * (share + hidden * density)
    return of_hidden.to(product.dtype), of_hidden.reshape(-1, product.shape[-1]).sum(0, keepdim=True)


@_backward.register_kernel("cuda")
def _backward_on_gpu(
    gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    from ipu_trainer.training.kernels import triton_kernels

    return triton_kernels.bias_gelu_backward(gradient, product, bias)


@_backward.register_fake
def _shapes(gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    width = product.shape[-1]
    parts = -(-(product.numel() // width) // ROWS_OF_PART) if product.device.type == "cuda" else 1
    sums = product.new_empty(parts, width, dtype=exact_dtype(product.dtype))
    return product.new_empty(product.shape), sums


def _keep(ctx: Any, inputs: Tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull_back(ctx: Any, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    product, bias = ctx.saved_tensors
    of_product, of_bias = operations.bias_gelu_backward(gradient, product, bias)
    return of_product, of_bias.sum(0).to(bias.dtype)


_forward.register_autograd(_pull_back, setup_context=_keep)
