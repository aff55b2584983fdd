"""gelu(product + bias), whose backward pass reads the gradient once, for the product's gradient and for the bias's.

A compiler reads it twice, for the elements and for the sum over samples, and both are bound by memory bandwidth.
"""

import math
from typing import Any, Tuple

import torch
from torch.library import triton_op
from torch.nn import functional

from ipu_trainer.training.acceleration.fused_kernels.operations import NAMESPACE, operations, upcast


def bias_gelu(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The exact gelu (by erf) of product + bias. product: (..., width), bias: (width,)."""
    result: torch.Tensor = operations.bias_gelu(product, bias)
    return result


@triton_op(f"{NAMESPACE}::bias_gelu", mutates_args=())
def _forward(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if product.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.bias_gelu(product, bias)
    return functional.gelu(upcast(product) + upcast(bias)).to(product.dtype)


@triton_op(f"{NAMESPACE}::bias_gelu_backward", mutates_args=())
def _backward(gradient: torch.Tensor, product: torch.Tensor, bias: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """The product's gradient, and partial sums of the bias's, (parts, width)."""
    if product.device.type == "cuda":
        from ipu_trainer.training.acceleration.fused_kernels import triton_kernels

        return triton_kernels.bias_gelu_backward(gradient, product, bias)
    hidden = upcast(product) + upcast(bias)
    share = 0.5 * (1 + torch.erf(hidden * math.sqrt(0.5)))
    density = torch.exp(-0.5 * hidden * hidden) / math.sqrt(2 * math.pi)
    grad_hidden = upcast(gradient) * (share + hidden * density)
    return grad_hidden.to(product.dtype), grad_hidden.reshape(-1, product.shape[-1]).sum(0, keepdim=True)


def _save_for_backward(ctx: Any, inputs: Tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    product, bias = ctx.saved_tensors
    grad_product, grad_bias = operations.bias_gelu_backward(gradient, product, bias)
    return grad_product, grad_bias.sum(0).to(bias.dtype)


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
