"""The last layer of a ViT computed for the class token alone: a classification head reads nothing else of it.

Queries, the projection behind the attention and the feed-forward part of the other tokens are left out. So are keys and
values: a query q meets a token x as q (W x) = (q W) x, and what it reads, a weighted sum of W x, is W of the weighted sum. In
ViT-B/16 at 224 px that is 8 % of the multiply-adds. Logits and gradients are what they were.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTForImageClassification

from ipu_trainer.compat.torch_acceleration import has_hooks
from ipu_trainer.compat.transformers_training import attention_implementation
from ipu_trainer.training.acceleration.padded_lm_head import ALIGNED
from ipu_trainer.training.finetuning.stochastic_depth import DropPath, apply_drop_path
from ipu_trainer.training.layers import has_plain_projections, layer_stacks

_PARTS = ("attention", "layernorm_before", "layernorm_after", "mlp", "dropout")
_ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "attention_dropout")


class ClassTokenLayer:
    """Runs the last layer of a ViTForImageClassification for its first token."""

    def __init__(self, model: ViTForImageClassification, layer: nn.Module) -> None:
        self.model = model
        self.layer = layer

    @classmethod
    def of(cls, model: nn.Module) -> Optional[ClassTokenLayer]:
        """None for every other class, whose head may read more, and where Transformers builds the layer in another way."""
        if type(model) is not ViTForImageClassification:
            return None
        stacks = layer_stacks(model)
        if len(stacks) != 1:
            return None
        layer = stacks[0][1][-1]
        attention = getattr(layer, "attention", None)
        if not all(hasattr(layer, part) for part in _PARTS):
            return None
        if not all(hasattr(attention, part) for part in _ATTENTION_PARTS):
            return None
        return cls(model, layer)

    @contextlib.contextmanager
    def reading_class_token(self) -> Iterator[bool]:
        """Inside the block the model computes logits alone; yields False, and changes nothing, where more is asked of it."""
        if not self._only_logits_are_read():
            yield False
            return
        before = self.layer.__dict__.get("forward")
        self._add_and_normalise: Any = getattr(before, "add_and_normalise", None)
        self.layer.forward = self._forward  # type: ignore[method-assign, assignment]
        try:
            yield True
        finally:
            del self.layer.__dict__["forward"]
            if before is not None:
                self.layer.forward = before  # type: ignore[method-assign]

    def _only_logits_are_read(self) -> bool:
        config = self.model.config
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return False
        if attention_implementation(config) not in ("sdpa", "eager"):
            return False
        if getattr(self.layer, "gradient_checkpointing", False):  # backward calls forward again, after the block
            return False
        # Nobody may look at the layer or at what follows it, apart from our own skipping of samples.
        norm = getattr(self.model.vit, "layernorm", None)
        read = [*self.layer.modules(), *([] if norm is None else [norm])]
        looked_at = any(has_hooks(module, apart_from=(DropPath,)) for module in read)
        forward = self.layer.__dict__.get("forward")
        return (forward is None or hasattr(forward, "add_and_normalise")) and not looked_at

    def _forward(
        self,
        hidden: Any,
        attention_mask: Optional[torch.Tensor] = None,
        drop_mask: Optional[torch.Tensor] = None,
        defers: bool = False,
        **named: Any,
    ) -> Any:
        """(micro_batch, 1, width) of (micro_batch, tokens, width), with or without a deferred residual add (compiled_layers.py)."""
        layer: Any = self.layer
        if attention_mask is not None:
            plain = type(layer).forward(layer, hidden, attention_mask, **named)
            return plain if drop_mask is None else apply_drop_path(hidden, plain, drop_mask)
        if isinstance(hidden, tuple):
            hidden, normalised = self._add_and_normalise(hidden, layer.layernorm_before)
        else:
            normalised = layer.layernorm_before(hidden)
        before = hidden[:, :1]
        read = self._read_directly(normalised) if self._keys_are_products() else self._read_keys(normalised)
        token = layer.dropout(layer.attention.o_proj(read)) + before
        token = layer.dropout(layer.mlp(layer.layernorm_after(token))) + token
        return token if drop_mask is None else apply_drop_path(before, token, drop_mask)

    def _keys_are_products(self) -> bool:
        """Whether keys and values are plain products with the tokens, and none of what they give is dropped."""
        attention: Any = self.layer.attention
        return has_plain_projections(attention) and not attention.attention_dropout

    def _read_directly(self, normalised: torch.Tensor) -> torch.Tensor:
        """What the class token reads, (micro_batch, 1, heads * head_dim), of (micro_batch, tokens, width)."""
        attention: Any = self.layer.attention
        weights = [
            projection.weight.view(-1, attention.head_dim, normalised.shape[-1])  # (heads, head_dim, width)
            for projection in (attention.k_proj, attention.v_proj)
        ]
        query = self._heads(attention.q_proj(normalised[:, :1])).squeeze(2)
        heads = query.shape[1]
        missing = -heads % ALIGNED
        directions = functional.pad(torch.einsum("bhd,hdw->bhw", query, weights[0]), (0, 0, 0, missing))
        scores = normalised @ directions.transpose(1, 2)  # (micro_batch, tokens, heads and the missing)
        if attention.k_proj.bias is not None:  # the same for all tokens: softmax does not see it, its gradient is 0
            shift = (query * attention.k_proj.bias.view(-1, attention.head_dim)).sum(-1)
            scores = scores + functional.pad(shift, (0, missing)).unsqueeze(1)
        shares = (
            (scores * attention.scaling)
            .softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))
            .to(scores.dtype)
        )
        read: torch.Tensor = normalised.transpose(1, 2) @ shares  # (micro_batch, width, heads and the missing)
        read = torch.einsum("bwh,hdw->bhd", read[..., :heads], weights[1]).flatten(1)
        if attention.v_proj.bias is not None:  # shares sum to 1
            read = read + attention.v_proj.bias
        return read.unsqueeze(1)

    def _read_keys(self, normalised: torch.Tensor) -> torch.Tensor:
        """The same by keys and values of all tokens."""
        attention: Any = self.layer.attention
        key, value = self._heads(attention.k_proj(normalised)), self._heads(attention.v_proj(normalised))
        query = self._heads(attention.q_proj(normalised[:, :1]))
        dropout = attention.attention_dropout if self.layer.training else 0.0
        read = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=attention.scaling)
        return read.transpose(1, 2).flatten(2)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(micro_batch, heads, tokens, head_dim)"""
        layer: Any = self.layer
        heads: torch.Tensor = projected.view(*projected.shape[:2], -1, layer.attention.head_dim).transpose(1, 2)
        return heads
