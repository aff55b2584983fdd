"""float16 and float32 in one operator: what the device does where PyTorch refuses.

A product or convolution takes the type of its first argument, the activations: weights follow. A normalisation computes
in float32 and returns its input's type. A loss takes the wider type. The casts are PyTorch's own, so that gradients
arrive in the types of the weights. Source: PopTorch user guide, "Float 16 operations".
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence

import torch

from ipu_trainer.compat.torch_operators import functions_named

_FLOATS = (torch.float16, torch.float32)


_PRODUCTS = functions_named(
    *("linear", "bilinear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "prelu"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
_NORMS = functions_named("layer_norm", "group_norm", "batch_norm", "instance_norm")
_LOSSES = functions_named(
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cross_entropy", "nll_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss", "cosine_embedding_loss"),
)


def call(function: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """function(*args, **kwargs), its tensors cast to one type where PyTorch would refuse two."""
    if function not in _PRODUCTS and function not in _NORMS and function not in _LOSSES:
        return function(*args, **kwargs)
    types = [t.dtype for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor) and t.dtype in _FLOATS]
    if len(set(types)) < 2:
        return function(*args, **kwargs)
    if function in _PRODUCTS:
        return _cast_and_call(function, args, kwargs, types[0])
    result = _cast_and_call(function, args, kwargs, torch.float32)
    return result.to(types[0]) if function in _NORMS else result


def _cast_and_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any], dtype: torch.dtype
) -> Any:
    def cast(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.dtype in _FLOATS
        return value.to(dtype) if is_float else value

    cast_args: List[Any] = [cast(value) for value in args]
    return function(*cast_args, **{name: cast(value) for name, value in kwargs.items()})
