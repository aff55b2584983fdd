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

# Their forward functions are the same in Transformers 5, apart from the names.
_ATTENTIONS = ("ViTAttention", "DeiTAttention", "ViTMAEAttention", "ViTMSNAttention")
_FEED_FORWARDS = ("ViTMLP", "DeiTMLP", "ViTMAEMLP", "ViTMSNMLP")


@contextlib.contextmanager
def own_kernels(model: nn.Module) -> Iterator[int]:
    """Inside the block the layers of `model` that are known use the kernels; yields how many modules do."""
    changed: List[nn.Module] = []
    for module in model.modules():
        forward = _forward_for(module)
        if forward is not None:
            module.__dict__["forward"] = MethodType(forward, module)
            changed.append(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _forward_for(module: Any) -> Any:
    if "forward" in module.__dict__:
        return None
    if type(module).__name__ in _ATTENTIONS and projections_of(module) is not None and hasattr(module, "o_proj"):
        return _forward_of_attention()
    if type(module).__name__ in _FEED_FORWARDS and _is_gelu(getattr(module, "activation_fn", None)):
        first: Any = getattr(module, "fc1", None)
        plain = type(first) is nn.Linear and first.bias is not None and "forward" not in first.__dict__
        if plain and not _has_hooks(first):
            return _forward_of_feed_forward()
    return None


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what a module is given or gives."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


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
        unknown = unknown or any(_has_hooks(projection) for projection in projections)
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
        if not self.training or _has_hooks(self.fc1):
            result: torch.Tensor = type(self).forward(self, hidden_states)
            return result
        second: torch.Tensor = self.fc2(bias_gelu(functional.linear(hidden_states, self.fc1.weight), self.fc1.bias))
        return second

    return forward
