"""What ViT's layers, attentions and feed-forward parts compute in place of their classes' forward functions (rewrite.py).

What one was not written for (evaluation, a mask, dropout, adapters, hooks) it computes as Transformers does.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Tuple, Union

import torch
from torch.nn import functional

from ipu_trainer.training.acceleration.fused_kernels.attention import has_kernel_for, packed_attention
from ipu_trainer.training.acceleration.fused_kernels.bias_gelu import bias_gelu
from ipu_trainer.training.acceleration.fused_kernels.residual_norm import MOST_COLUMNS, residual_norm
from ipu_trainer.training.finetuning.stochastic_depth import mixed
from ipu_trainer.training.layers import has_hooks

# Hidden states whose last sum is left to the next layer norm: residual, product, bias and kept as residual_norm takes them.
Unsummed = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optional[torch.Tensor]]


def attention_forward(
    self: Any, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **named: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    if attention_mask is not None or not _attention_fits(self, hidden_states):
        plain: Tuple[torch.Tensor, Optional[torch.Tensor]] = type(self).forward(
            self, hidden_states, attention_mask, **named
        )
        return plain
    read, bias = _read(self, hidden_states)
    return functional.linear(read, self.o_proj.weight, bias), None


def feed_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if not self.training or _are_looked_at((self.fc1, self.activation_fn)):
        plain: torch.Tensor = type(self).forward(self, hidden_states)
        return plain
    second: torch.Tensor = self.fc2(_inner(self, hidden_states))
    return second


def layer_forward(
    self: Any,
    hidden_states: Union[torch.Tensor, Unsummed],
    attention_mask: Optional[torch.Tensor] = None,
    kept: Optional[torch.Tensor] = None,
    hands_on: bool = False,
    **named: Any,
) -> Union[torch.Tensor, Unsummed]:
    """Takes hidden states, (batch, tokens, width), summed or not, and gives them so.

    kept: (batch,), how much this layer's change of a sample counts (drop_path.py).
    hands_on: whether the next layer may be given them unsummed.
    """
    residual = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
    joins = hands_on or isinstance(hidden_states, tuple)
    if not joins or attention_mask is not None or not _layer_fits(self, residual):
        summed = sum_of(hidden_states)
        plain: torch.Tensor = type(self).forward(self, summed, attention_mask, **named)
        return plain if kept is None else mixed(summed, plain, kept)
    before, after, feed = self.layernorm_before, self.layernorm_after, self.mlp
    residual, normalised = summed_and_normalised(hidden_states, before)
    read, bias = _read(self.attention, normalised)
    product = functional.linear(read, self.attention.o_proj.weight)
    # What follows in this layer reads the whole sum, what is skipped is left out behind the layer.
    residual, normalised = residual_norm(
        residual, product, bias, after.weight, after.bias, after.eps, kept, reads_all=kept is not None
    )
    product = functional.linear(_inner(feed, normalised), feed.fc2.weight)
    given = (residual, product, feed.fc2.bias, kept)
    return given if hands_on else sum_of(given)


layer_forward.joins_layers = True  # type: ignore[attr-defined]


def summed_and_normalised(hidden: Union[torch.Tensor, Unsummed], norm: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and what a plain layer norm makes of them."""
    if not isinstance(hidden, tuple):
        return hidden, norm(hidden)
    residual, product, bias, kept = hidden
    return residual_norm(residual, product, bias, norm.weight, norm.bias, norm.eps, kept)


def sum_of(hidden: Union[torch.Tensor, Unsummed]) -> torch.Tensor:
    if not isinstance(hidden, tuple):
        return hidden
    residual, product, bias, kept = hidden
    change = product + bias if kept is None else (product + bias) * kept[:, None, None]
    return residual + change.to(residual.dtype)


def _read(attention: Any, hidden: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """What an attention's output projection reads, (batch, tokens, width), and the bias that the projection adds to it, (width,).

    Weights of a query sum to 1, so what all values have in common comes through: the values' bias is part of the output's.
    """
    query, key, value, output = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    constant, bias = None, output.bias
    if query.bias is not None:
        constant = torch.cat([query.bias.detach(), key.bias.detach(), torch.zeros_like(value.bias)])
        bias = bias + (output.weight * value.bias).sum(-1)
    packed = functional.linear(hidden, torch.cat([query.weight, key.weight, value.weight]), constant)
    packed = packed.view(*packed.shape[:-1], 3, -1, attention.head_dim)
    return packed_attention(packed, query.bias, key.bias, attention.scaling).flatten(2), bias


def _inner(feed: Any, hidden: torch.Tensor) -> torch.Tensor:
    return bias_gelu(functional.linear(hidden, feed.fc1.weight), feed.fc1.bias)


def _attention_fits(attention: Any, hidden: torch.Tensor) -> bool:
    unknown = attention.attention_dropout or attention.config._attn_implementation != "sdpa"
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    fits = has_kernel_for(hidden.device.type, _product_dtype(hidden), hidden.shape[1], attention.head_dim)
    return bool(attention.training and fits and not unknown and not _are_looked_at(parts))


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _layer_fits(layer: Any, hidden: torch.Tensor) -> bool:
    feed, norms = layer.mlp, (layer.layernorm_before, layer.layernorm_after)
    parts = (layer.attention, layer.dropout, *norms, feed, feed.fc1, feed.fc2, feed.activation_fn)
    fits = hidden.shape[-1] <= MOST_COLUMNS and not layer.dropout.p and not _are_looked_at(parts)
    return fits and _attention_fits(layer.attention, hidden)


def _are_looked_at(modules: Iterable[Any]) -> bool:
    return any(has_hooks(module) for module in modules)
