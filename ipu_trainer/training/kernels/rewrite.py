"""Where the kernels are put in: the attention and the feed-forward part of ViT's layers, while they train.

Parameters keep their names and stay apart, and everything is undone at the end. What a layer was not written for (a mask,
dropout of attention weights, adapters) it computes as Transformers does.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.training.compile import projections_of
from ipu_trainer.training.layers import has_hooks, is_plain_linear

# Their forward functions are the same in Transformers 5, apart from the names.
_ATTENTIONS = ("ViTAttention", "DeiTAttention", "ViTMAEAttention", "ViTMSNAttention")
_FEED_FORWARDS = ("ViTMLP", "DeiTMLP", "ViTMAEMLP", "ViTMSNMLP")


@contextlib.contextmanager
def own_kernels(model: nn.Module) -> Iterator[int]:
    """Inside the block the layers of `model` that are known use the kernels; yields how many modules do."""
    known = modules_with_kernels(model)
    for module in known:
        forward = _forward_of_attention() if type(module).__name__ in _ATTENTIONS else _forward_of_feed_forward()
        module.__dict__["forward"] = MethodType(forward, module)
    try:
        yield len(known)
    finally:
        for module in known:
            del module.__dict__["forward"]


def modules_with_kernels(model: nn.Module) -> List[nn.Module]:
    """The attention and feed-forward modules that own_kernels would change."""
    return [module for module in model.modules() if "forward" not in module.__dict__ and _is_known(module)]


def _is_known(module: Any) -> bool:
    if type(module).__name__ in _ATTENTIONS:
        return projections_of(module) is not None and hasattr(module, "o_proj")
    if type(module).__name__ in _FEED_FORWARDS:
        first: Any = getattr(module, "fc1", None)
        return is_plain_linear(first) and first.bias is not None and _is_gelu(getattr(module, "activation_fn", None))
    return False


def _is_gelu(activation: Any) -> bool:
    return getattr(activation, "act", None) is functional.gelu or type(activation) is nn.GELU


def _forward_of_attention() -> Any:
    """A function named forward: a pickled module has its class's, a copy this one with its own weights."""
    from ipu_trainer.training.kernels.attention import has_kernel_for, packed_attention

    def forward(
        self: Any, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **named: Any
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        unknown = attention_mask is not None or self.attention_dropout or self.config._attn_implementation != "sdpa"
        unknown = unknown or any(has_hooks(projection) for projection in projections)
        dtype = _product_dtype(hidden_states)
        fits = has_kernel_for(hidden_states.device.type, dtype, hidden_states.shape[1], self.head_dim)
        if unknown or not fits or not self.training:
            plain: Tuple[torch.Tensor, Optional[torch.Tensor]] = type(self).forward(
                self, hidden_states, attention_mask, **named
            )
            return plain
        weight = torch.cat([projection.weight for projection in projections])
        bias = None if self.q_proj.bias is None else torch.cat([projection.bias for projection in projections])
        packed = functional.linear(hidden_states, weight, bias)
        packed = packed.view(*packed.shape[:-1], 3, -1, self.head_dim)
        return self.o_proj(packed_attention(packed, self.scaling).flatten(2)), None

    return forward


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _forward_of_feed_forward() -> Any:
    from ipu_trainer.training.kernels.bias_gelu import bias_gelu

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or has_hooks(self.fc1):
            result: torch.Tensor = type(self).forward(self, hidden_states)
            return result
        second: torch.Tensor = self.fc2(bias_gelu(functional.linear(hidden_states, self.fc1.weight), self.fc1.bias))
        return second

    return forward
