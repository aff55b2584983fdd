"""Stochastic depth (drop path): layers that are skipped for some samples while training.

Huang et al., "Deep networks with stochastic depth", ECCV 2016, rates growing linearly with depth.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple, Union

import torch
from torch import nn

from ipu_trainer.compat.torch_acceleration import forward_hooks, has_global_hooks, has_hooks
from ipu_trainer.errors import UserError
from ipu_trainer.training.layers import keeps_width, layer_stacks, parameter_depths


def add_drop_path(model: nn.Module, rate: float) -> List[torch.utils.hooks.RemovableHandle]:
    """Skip layer i of L for a sample with probability rate x i / (L - 1) while training; the rest is scaled up.

    Returns the hooks, whose remove() undoes it. The model's parameters and state do not change. A model that was made with this
    rate in its own configuration skips its layers itself, and gets no hooks. Raises UserError for layers that change their
    input's shape, such as stages of a pyramid.
    """
    if not 0.0 <= rate < 1.0:
        raise UserError(f"drop_path {rate} must be at least 0 (off) and below 1. ViT-S takes 0.1.")
    handles: List[torch.utils.hooks.RemovableHandle] = []
    if rate and rate != own_drop_path(getattr(model, "config", None)):
        parameter_depths(model)  # refuses a model without layers
        if not can_skip_layers(model):
            own = own_drop_path(getattr(model, "config", None))
            has_own = (
                "" if own is None else f" Its configuration has such a rate itself, {own}: make the model with {rate}."
            )
            raise UserError(
                f"drop_path {rate}: the layers of {type(model).__name__} change the shape of their input, so none can be skipped."
                f"{has_own or ' Use drop_path=0.'}"
            )
        for _, layers in layer_stacks(model):
            for position, layer in enumerate(layers):
                layer_rate = rate * position / (len(layers) - 1)
                if layer_rate:
                    handles.append(layer.register_forward_hook(DropPath(layer_rate)))
    return handles


def can_skip_layers(model: nn.Module) -> bool:
    """Whether the model has repeated layers whose output has the shape of their input."""
    stacks = layer_stacks(model)
    return bool(stacks) and all(keeps_width(layers) for _, layers in stacks)


def own_drop_path(config: Any) -> Optional[float]:
    """The rate of stochastic depth that a model's configuration has itself (model_args for timm's); None where it has none."""
    settings = getattr(config, "model_args", None) or {}
    rate = settings.get("drop_path_rate", getattr(config, "drop_path_rate", None))
    return float(rate) if isinstance(rate, (int, float)) else None  # CvT has a list, one rate a stage


class DropPath:
    """Forward hook: while training, a layer is skipped for a sample with probability `rate`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Tuple[Any, ...], output: Any) -> Any:
        return apply_drop_path(inputs[0], output, drop_path_mask(inputs[0], self.rate)) if module.training else None


def drop_path_mask(hidden: torch.Tensor, rate: Union[float, torch.Tensor]) -> torch.Tensor:
    """(batch,): the factor of a layer's change, 0 with probability `rate` and 1 / (1 - rate) otherwise."""
    kept = torch.rand(hidden.shape[0], device=hidden.device) >= rate
    return kept.to(torch.promote_types(hidden.dtype, torch.float32)) / (1.0 - rate)


def apply_drop_path(before: torch.Tensor, output: Any, mask: torch.Tensor) -> Any:
    """A layer's output, its change of its input `before` multiplied by `mask`."""
    after = output[0] if isinstance(output, tuple) else output
    if before.shape != after.shape:  # a layer that computes only its first tokens
        before = before[:, : after.shape[1]]
    result = before + (after - before) * mask.to(after.dtype).view(-1, *[1] * (after.dim() - 1))
    return (result, *output[1:]) if isinstance(output, tuple) else result


def drop_path_rate(layer: nn.Module) -> Optional[float]:
    """The rate of the layer's DropPath hook, None if it has none."""
    return next((hook.rate for hook in forward_hooks(layer) if isinstance(hook, DropPath)), None)


def has_only_drop_path(layer: nn.Module) -> bool:
    """Whether no hook but one DropPath is called with the layer."""
    return len(forward_hooks(layer)) <= 1 and not (has_hooks(layer, apart_from=(DropPath,)) or has_global_hooks())
