"""Exact shortcuts in training: a first layer for one grayscale channel, and a last layer for the class token alone.

GrayscaleProjection merges normalisation and three equal channels into the weights of the patch projection:

conv(((g, g, g) - mean) / std, W) + b  =  conv(g, sum_c W_c / std_c) + b - sum W_c * mean_c / std_c

Every step computes the merged weights from the model's weights, so gradients and checkpoints are those of the model. It applies to
the models of _PROJECTED, whose projection is the first that happens to the pixels.

ClassTokenLayer, for ViTForImageClassification alone, skips queries, output projection and feed-forward of the tokens that the head
does not use, and their keys and values: the score of a query q and a token x is q (W x) = (q W) x, and the attention output, a
weighted sum of W x, is W times the weighted sum of x. This saves 8 % of the multiply-adds of ViT-B/16 at 224 px. Logits and
gradients do not change.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTForImageClassification

from ipu_trainer.compat.torch_acceleration import has_hooks
from ipu_trainer.compat.transformers_training import attention_implementation
from ipu_trainer.tasks.chest_xray.model.architectures import image_size
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation
from ipu_trainer.training.acceleration.compiled_layers import ALIGNED
from ipu_trainer.training.finetuning.stochastic_depth import DropPath, apply_drop_path
from ipu_trainer.training.layers import has_plain_projections, layer_stacks

_PARTS = ("attention", "layernorm_before", "layernorm_after", "mlp", "dropout")
_ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "attention_dropout")


# Types of models that pass pixels to their patch projection as they are. Swin pads sizes that its patches do not divide: see below.
_PROJECTED = ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "swin", "swinv2", "convnext", "convnextv2")


class ClassTokenLayer:
    """Computes the last layer of a ViTForImageClassification for its class token."""

    def __init__(self, model: ViTForImageClassification, layer: nn.Module) -> None:
        self.model = model
        self.layer = layer

    @classmethod
    def of(cls, model: nn.Module) -> Optional[ClassTokenLayer]:
        """None for every other class, whose head may use more tokens, and for a layer with other parts."""
        if type(model) is not ViTForImageClassification:
            return None
        stacks = layer_stacks(model)
        if len(stacks) != 1:
            return None
        layer = stacks[0][1][-1]
        attention = getattr(layer, "attention", None)
        has_parts = all(hasattr(layer, part) for part in _PARTS)
        return cls(model, layer) if has_parts and all(hasattr(attention, part) for part in _ATTENTION_PARTS) else None

    @contextlib.contextmanager
    def reading_class_token(self) -> Iterator[bool]:
        """Inside the block the model computes logits alone; yields False, and changes nothing, if more outputs are in use."""
        if not self._only_logits_are_used():
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

    def _only_logits_are_used(self) -> bool:
        config = self.model.config
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return False
        if attention_implementation(config) not in ("sdpa", "eager"):
            return False
        if getattr(self.layer, "gradient_checkpointing", False):  # backward calls forward again, after the block
            return False
        # No hook may see the layer or what follows it, apart from drop path.
        norm = getattr(self.model.vit, "layernorm", None)
        observed = [*self.layer.modules(), *([] if norm is None else [norm])]
        has_observers = any(has_hooks(module, apart_from=(DropPath,)) for module in observed)
        forward = self.layer.__dict__.get("forward")
        return (forward is None or hasattr(forward, "add_and_normalise")) and not has_observers

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
        # Keys and values are skipped where they are plain matrix products of the tokens, without attention dropout.
        is_plain = has_plain_projections(layer.attention) and not layer.attention.attention_dropout
        attended = (self._attention_without_keys if is_plain else self._attention_with_keys)(normalised)
        token = layer.dropout(layer.attention.o_proj(attended)) + before
        token = layer.dropout(layer.mlp(layer.layernorm_after(token))) + token
        return token if drop_mask is None else apply_drop_path(before, token, drop_mask)

    def _attention_without_keys(self, normalised: torch.Tensor) -> torch.Tensor:
        """The class token's attention output, (micro_batch, 1, heads * head_dim), from (micro_batch, tokens, width)."""
        attention: Any = self.layer.attention
        weights = [
            projection.weight.view(-1, attention.head_dim, normalised.shape[-1])  # (heads, head_dim, width)
            for projection in (attention.k_proj, attention.v_proj)
        ]
        query = self._heads(attention.q_proj(normalised[:, :1])).squeeze(2)
        heads = query.shape[1]
        padding = -heads % ALIGNED
        directions = functional.pad(torch.einsum("bhd,hdw->bhw", query, weights[0]), (0, 0, 0, padding))
        scores = normalised @ directions.transpose(1, 2)  # (micro_batch, tokens, heads + padding)
        # The keys' bias is equal for all tokens: it does not change the softmax, and its gradient is 0.
        if attention.k_proj.bias is not None:
            shift = (query * attention.k_proj.bias.view(-1, attention.head_dim)).sum(-1)
            scores = scores + functional.pad(shift, (0, padding)).unsqueeze(1)
        float32 = torch.promote_types(scores.dtype, torch.float32)
        probabilities = (scores * attention.scaling).softmax(1, dtype=float32).to(scores.dtype)
        attended: torch.Tensor = normalised.transpose(1, 2) @ probabilities  # (micro_batch, width, heads + padding)
        attended = torch.einsum("bwh,hdw->bhd", attended[..., :heads], weights[1]).flatten(1)
        if attention.v_proj.bias is not None:  # probabilities sum to 1
            attended = attended + attention.v_proj.bias
        return attended.unsqueeze(1)

    def _attention_with_keys(self, normalised: torch.Tensor) -> torch.Tensor:
        """The same from keys and values of all tokens."""
        attention: Any = self.layer.attention
        key, value = self._heads(attention.k_proj(normalised)), self._heads(attention.v_proj(normalised))
        query = self._heads(attention.q_proj(normalised[:, :1]))
        dropout = attention.attention_dropout if self.layer.training else 0.0
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=attention.scaling
        )
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(micro_batch, heads, tokens, head_dim)"""
        layer: Any = self.layer
        heads: torch.Tensor = projected.view(*projected.shape[:2], -1, layer.attention.head_dim).transpose(1, 2)
        return heads


class GrayscaleProjection:
    """Lets a model take gray values in [0, 1] instead of normalised RGB."""

    def __init__(self, projection: nn.Conv2d, normalisation: Normalisation) -> None:
        self.projection = projection
        self.normalisation = normalisation
        self._constants: Optional[Tuple[torch.Tensor, torch.Tensor]] = None

    @classmethod
    def of(cls, model: nn.Module, normalisation: Normalisation) -> Optional[GrayscaleProjection]:
        """None if the model's first convolution is no plain patch projection of three channels, or does not get the pixels."""
        config = getattr(model, "config", None)
        if getattr(config, "model_type", None) not in _PROJECTED:
            return None
        first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
        if first is None or type(first) is not nn.Conv2d or first.in_channels != 3 or first.groups != 1:
            return None
        # Padding would add zeros before normalisation instead of after it.
        if first.padding not in ((0, 0), "valid") or tuple(first.stride) != tuple(first.kernel_size):
            return None
        if any(size % side for size, side in zip(image_size(config) or (0, 0), first.kernel_size)):
            return None
        return cls(first, normalisation)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model's pixel_values are gray_channels(gray)."""
        self.projection.forward = self._forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.projection.__dict__["forward"]

    @staticmethod
    def gray_channels(gray: torch.Tensor) -> torch.Tensor:
        """(micro_batch, height, width) expanded to (micro_batch, 3, height, width), without a copy."""
        return gray[:, None].expand(-1, 3, -1, -1)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight, bias = self.projection.weight, self.projection.bias
        mean, std = self._mean_and_std(weight)
        scaled = weight / std
        shift = -(scaled * mean).sum(dim=(1, 2, 3))
        weight = scaled.sum(dim=1)  # (channels, height, width) of a patch
        height, width = weight.shape[1:]
        # A GEMM over patches: a convolution of one channel would first convert the memory format.
        gray = pixels[:, 0].unfold(1, height, height).unfold(2, width, width)
        number, rows, columns = gray.shape[:3]
        patches = gray.reshape(number, rows * columns, height * width)
        tokens = functional.linear(patches, weight.flatten(1), shift if bias is None else bias + shift)
        return tokens.transpose(1, 2).view(number, -1, rows, columns)

    def _mean_and_std(self, like: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """(1, 3, 1, 1) each, copied once: a copy in every step would synchronise with the GPU."""
        found = self._constants
        if found is None or found[0].device != like.device or found[0].dtype != like.dtype:
            given = (self.normalisation.mean, self.normalisation.std)
            mean, std = (like.new_tensor(values).view(1, 3, 1, 1) for values in given)
            self._constants = found = (mean, std)
        return found
