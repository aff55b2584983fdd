"""gelu(product + bias), whose backward pass reads the gradient once: for the product's and for the bias's.

A compiler makes two passes over it, one for the elements and one for the sum over samples, and a GPU is bound by memory there.
"""

import math
from typing import Any, Tuple

import torch
from torch.library import triton_op
from torch.nn import functional

from ipu_trainer.training.acceleration.fused_kernels.operations import NAMESPACE, operations
from ipu_trainer.training.acceleration.fused_kernels.rounding import exact


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The exact gelu (by erf) of product + bias. product: (..., width), bias: (width,)."""
    result: torch.Tensor = operations.bias_gelu(product, bias)
    return result


@triton_op(f"{NAMESPACE}::bias_gelu", mutates_args=())
def _forward(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if product.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.bias_gelu(product, bias)
    return functional.gelu(exact(product) + exact(bias)).to(product.dtype)


@triton_op(f"{NAMESPACE}::bias_gelu_backward", mutates_args=())
def _backward(gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """The product's gradient, and the bias's in parts, (parts, width), still to be summed."""
    if product.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.bias_gelu_backward(gradient, product, bias)
    hidden = exact(product) + exact(bias)
    share = 0.5 * (1 + torch.erf(hidden * math.sqrt(0.5)))
    density = torch.exp(-0.5 * hidden * hidden) / math.sqrt(2 * math.pi)
    of_hidden = exact(gradient) * (share + hidden * density)
    return of_hidden.to(product.dtype), of_hidden.reshape(-1, product.shape[-1]).sum(0, keepdim=True)


def _keep(ctx: Any, inputs: Tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull_back(ctx: Any, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    product, bias = ctx.saved_tensors
    of_product, of_bias = operations.bias_gelu_backward(gradient, product, bias)
    return of_product, of_bias.sum(0).to(bias.dtype)


_forward.register_autograd(_pull_back, setup_context=_keep)
