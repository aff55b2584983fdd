"""Forward functions with fused kernels for ViT's layers, attention and MLP; vit_layers.py puts them in.

Each calls its class's forward where the kernels do not fit: in evaluation, with a mask, dropout, adapters or hooks.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Tuple, Union

import torch
from torch.nn import functional

from ipu_trainer.compat.torch_acceleration import has_hooks
from ipu_trainer.compat.transformers_training import attention_implementation
from ipu_trainer.training.acceleration.fused_kernels.attention import has_kernel_for, packed_attention
from ipu_trainer.training.acceleration.fused_kernels.bias_gelu import bias_gelu
from ipu_trainer.training.acceleration.fused_kernels.residual_norm import MOST_COLUMNS, residual_norm
from ipu_trainer.training.finetuning.stochastic_depth import apply_drop_path

# Hidden states whose last residual add is deferred to the next layer norm: residual, product, bias, drop_mask of residual_norm().
Deferred = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optional[torch.Tensor]]


def attention_forward(
    self: Any, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None, **named: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    if attention_mask is not None or not _attention_fits(self, hidden_states):
        plain: Tuple[torch.Tensor, Optional[torch.Tensor]] = type(self).forward(
            self, hidden_states, attention_mask, **named
        )
        return plain
    read, bias = _attend(self, hidden_states)
    return functional.linear(read, self.o_proj.weight, bias), None


def mlp_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if not self.training or _have_hooks((self.fc1, self.activation_fn)):
        plain: torch.Tensor = type(self).forward(self, hidden_states)
        return plain
    second: torch.Tensor = self.fc2(_activated(self, hidden_states))
    return second


def layer_forward(
    self: Any,
    hidden_states: Union[torch.Tensor, Deferred],
    attention_mask: Optional[torch.Tensor] = None,
    drop_mask: Optional[torch.Tensor] = None,
    defers: bool = False,
    **named: Any,
) -> Union[torch.Tensor, Deferred]:
    """hidden_states: (batch, tokens, width), with or without a deferred residual add.

    drop_mask: (batch,), stochastic depth's factor of this layer's change.
    defers: whether to defer the last residual add, which the next layer takes.
    """
    residual = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
    fuses = defers or isinstance(hidden_states, tuple)
    if not fuses or attention_mask is not None or not _layer_fits(self, residual):
        summed = add_deferred(hidden_states)
        plain: torch.Tensor = type(self).forward(self, summed, attention_mask, **named)
        return plain if drop_mask is None else apply_drop_path(summed, plain, drop_mask)
    before, after, mlp = self.layernorm_before, self.layernorm_after, self.mlp
    residual, normalised = add_and_normalise(hidden_states, before)
    read, bias = _attend(self.attention, normalised)
    product = functional.linear(read, self.attention.o_proj.weight)
    # Stochastic depth skips the whole layer: its MLP reads the sum before the mask.
    residual, normalised = residual_norm(
        residual, product, bias, after.weight, after.bias, after.eps, drop_mask, norm_before_drop=drop_mask is not None
    )
    product = functional.linear(_activated(mlp, normalised), mlp.fc2.weight)
    deferred = (residual, product, mlp.fc2.bias, drop_mask)
    return deferred if defers else add_deferred(deferred)


def add_and_normalise(hidden: Union[torch.Tensor, Deferred], norm: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, and their plain layer norm."""
    if not isinstance(hidden, tuple):
        return hidden, norm(hidden)
    residual, product, bias, drop_mask = hidden
    return residual_norm(residual, product, bias, norm.weight, norm.bias, norm.eps, drop_mask)


layer_forward.add_and_normalise = add_and_normalise  # type: ignore[attr-defined]  # compiled_layers.py says what for


def add_deferred(hidden: Union[torch.Tensor, Deferred]) -> torch.Tensor:
    if not isinstance(hidden, tuple):
        return hidden
    residual, product, bias, drop_mask = hidden
    change = product + bias if drop_mask is None else (product + bias) * drop_mask[:, None, None]
    return residual + change.to(residual.dtype)


def _attend(attention: Any, hidden: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """The input of an attention's output projection, (batch, tokens, width), and that projection's bias, (width,).

    The values' bias passes the attention, whose weights sum to 1, so it is part of the output projection's bias.
    """
    query, key, value, output = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    constant, bias = None, output.bias
    if query.bias is not None:
        constant = torch.cat([query.bias.detach(), key.bias.detach(), torch.zeros_like(value.bias)])
        bias = bias + (output.weight * value.bias).sum(-1)
    packed = functional.linear(hidden, torch.cat([query.weight, key.weight, value.weight]), constant)
    packed = packed.view(*packed.shape[:-1], 3, -1, attention.head_dim)
    return packed_attention(packed, query.bias, key.bias, attention.scaling).flatten(2), bias


def _activated(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    return bias_gelu(functional.linear(hidden, mlp.fc1.weight), mlp.fc1.bias)


def _attention_fits(attention: Any, hidden: torch.Tensor) -> bool:
    unknown = attention.attention_dropout or attention_implementation(attention.config) != "sdpa"
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    fits = has_kernel_for(hidden.device.type, _product_dtype(hidden), hidden.shape[1], attention.head_dim)
    return bool(attention.training and fits and not unknown and not _have_hooks(parts))


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _layer_fits(layer: Any, hidden: torch.Tensor) -> bool:
    mlp, norms = layer.mlp, (layer.layernorm_before, layer.layernorm_after)
    parts = (layer.attention, layer.dropout, *norms, mlp, mlp.fc1, mlp.fc2, mlp.activation_fn)
    fits = hidden.shape[-1] <= MOST_COLUMNS and not layer.dropout.p and not _have_hooks(parts)
    return fits and _attention_fits(layer.attention, hidden)


def _have_hooks(modules: Iterable[Any]) -> bool:
    return any(has_hooks(module) for module in modules)
