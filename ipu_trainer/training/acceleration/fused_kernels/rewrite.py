"""Where the kernels are put in: ViT's layers, their attention and their feed-forward part, while they train.

Parameters keep their names and stay apart, and everything is undone at the end.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import Any, Iterator, List, Optional, Tuple

from torch import nn
from torch.nn import functional

from ipu_trainer.training.layers import is_plain_linear, layer_stacks, qkv_projections

# Their forward functions are the same in Transformers 5, apart from the names.
_ATTENTIONS = ("ViTAttention", "DeiTAttention", "ViTMAEAttention", "ViTMSNAttention")
_FEED_FORWARDS = ("ViTMLP", "DeiTMLP", "ViTMAEMLP", "ViTMSNMLP")
_LAYERS = ("ViTLayer", "DeiTLayer", "ViTMAELayer", "ViTMSNLayer")


@contextlib.contextmanager
def own_kernels(model: nn.Module) -> Iterator[int]:
    """Inside the block known layers of `model` use the kernels; yields how many attentions and feed-forward parts do."""
    known = modules_with_kernels(model)
    layers = _joined_layers(model)
    if known:
        from ipu_trainer.training.acceleration.fused_kernels import forwards  # needs a newer torch than the rest

        for module in known:
            is_attention = type(module).__name__ in _ATTENTIONS
            _bind(module, forwards.attention_forward if is_attention else forwards.feed_forward)
        for layer, following in layers:
            layer.__dict__["next_layer"] = following  # not a submodule: its parameters stay where they are
            _bind(layer, forwards.layer_forward)
    try:
        yield len(known)
    finally:
        for module in known:
            del module.__dict__["forward"]
        for layer, _ in layers:
            del layer.__dict__["forward"], layer.__dict__["next_layer"]


def _bind(module: nn.Module, forward: Any) -> None:
    """A copy of the module has this function with its own weights, a stored one looks the name up in its class."""
    forward.__name__ = "forward"
    module.__dict__["forward"] = MethodType(forward, module)


def modules_with_kernels(model: nn.Module) -> List[nn.Module]:
    """The attentions and feed-forward parts that own_kernels would change."""
    return [module for module in model.modules() if _is_known(module)]


def _is_known(module: Any) -> bool:
    if "forward" in module.__dict__:
        return False
    if type(module).__name__ in _ATTENTIONS:
        return qkv_projections(module) is not None and _is_linear_with_bias(getattr(module, "o_proj", None))
    if type(module).__name__ in _FEED_FORWARDS:
        return _is_linear_with_bias(getattr(module, "fc1", None)) and _is_gelu(getattr(module, "activation_fn", None))
    return False


def _is_linear_with_bias(module: Any) -> bool:
    return is_plain_linear(module) and module.bias is not None


def _is_gelu(activation: Any) -> bool:
    return getattr(activation, "act", None) is functional.gelu or type(activation) is nn.GELU


def _joined_layers(model: nn.Module) -> List[Tuple[nn.Module, Optional[nn.Module]]]:
    """(layer, the one behind it in its stack)."""
    found: List[Tuple[nn.Module, Optional[nn.Module]]] = []
    for _, stack in layer_stacks(model):
        layers = list(stack)
        if all(_is_known_layer(layer) for layer in layers):
            found += zip(layers, [*layers[1:], None])
    return found


def _is_known_layer(layer: Any) -> bool:
    if type(layer).__name__ not in _LAYERS or "forward" in layer.__dict__:
        return False
    norms = (layer.layernorm_before, layer.layernorm_after)
    are_plain = all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
    return are_plain and _is_known(layer.attention) and _is_known(layer.mlp) and _is_linear_with_bias(layer.mlp.fc2)
