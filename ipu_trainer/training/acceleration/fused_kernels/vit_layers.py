"""Puts the fused kernels into ViT's layers, their attention and their MLP while they train.

Parameters keep their names and do not move, and everything is undone at the end.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, List, Optional, Tuple

from torch import nn
from torch.nn import functional

from ipu_trainer.training.layers import bind_forward, has_plain_projections, is_plain_linear, layer_stacks

# Classes of one row have the same forward function in Transformers 5.
_ATTENTIONS = ("ViTAttention", "DeiTAttention", "ViTMAEAttention", "ViTMSNAttention")
_MLPS = ("ViTMLP", "DeiTMLP", "ViTMAEMLP", "ViTMSNMLP")
_LAYERS = ("ViTLayer", "DeiTLayer", "ViTMAELayer", "ViTMSNLayer")


@contextlib.contextmanager
def fused_layers(model: nn.Module) -> Iterator[int]:
    """Inside the block supported layers of `model` use the fused kernels; yields how many attention and MLP modules do."""
    modules = supported_modules(model)
    layers = _supported_layers(model)
    if modules:
        from ipu_trainer.training.acceleration.fused_kernels import vit_forwards  # needs a newer torch than the rest

        for module in modules:
            is_attention = type(module).__name__ in _ATTENTIONS
            bind_forward(module, vit_forwards.attention_forward if is_attention else vit_forwards.mlp_forward)
        for layer, following in layers:
            layer.__dict__["next_layer"] = following  # not a submodule: its parameters stay where they are
            bind_forward(layer, vit_forwards.layer_forward)
    try:
        yield len(modules)
    finally:
        for module in modules:
            del module.__dict__["forward"]
        for layer, _ in layers:
            del layer.__dict__["forward"], layer.__dict__["next_layer"]


def supported_modules(model: nn.Module) -> List[nn.Module]:
    """The attention and MLP modules that fused_layers() would change."""
    return [module for module in model.modules() if _is_supported(module)]


def _is_supported(module: Any) -> bool:
    if "forward" in module.__dict__:
        return False
    if type(module).__name__ in _ATTENTIONS:
        return has_plain_projections(module) and _is_linear_with_bias(getattr(module, "o_proj", None))
    if type(module).__name__ in _MLPS:
        return _is_linear_with_bias(getattr(module, "fc1", None)) and _is_gelu(getattr(module, "activation_fn", None))
    return False


def _is_linear_with_bias(module: Any) -> bool:
    return is_plain_linear(module) and module.bias is not None


def _is_gelu(activation: Any) -> bool:
    return getattr(activation, "act", None) is functional.gelu or type(activation) is nn.GELU


def _supported_layers(model: nn.Module) -> List[Tuple[nn.Module, Optional[nn.Module]]]:
    """(layer, the one behind it in its stack) of each stack whose layers are all supported."""
    found: List[Tuple[nn.Module, Optional[nn.Module]]] = []
    for _, stack in layer_stacks(model):
        layers = list(stack)
        if all(_is_supported_layer(layer) for layer in layers):
            found += zip(layers, [*layers[1:], None])
    return found


def _is_supported_layer(layer: Any) -> bool:
    if type(layer).__name__ not in _LAYERS or "forward" in layer.__dict__:
        return False
    norms = (layer.layernorm_before, layer.layernorm_after)
    are_plain = all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
    return (
        are_plain
        and _is_supported(layer.attention)
        and _is_supported(layer.mlp)
        and _is_linear_with_bias(layer.mlp.fc2)
    )
