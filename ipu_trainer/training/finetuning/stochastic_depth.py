"""Stochastic depth: layers that are left out for some samples while training.

Stochastic depth: Huang et al., "Deep networks with stochastic depth", ECCV 2016, rates growing linearly with depth.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple, Union

import torch
from torch import nn

from ipu_trainer.training.acceleration.fused_kernels.rounding import exact_dtype
from ipu_trainer.training.layers import has_hooks, layer_stacks, parameter_depths


def add_drop_path(model: nn.Module, rate: float) -> List[torch.utils.hooks.RemovableHandle]:
    """Skip layer i of L for a sample with probability rate x i / (L - 1) while training; the rest is scaled up.

    Returns the hooks, to take it off again; nothing is added to the model's parameters or state.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path {rate} must be at least 0 (off) and below 1. ViT-S takes 0.1.")
    handles: List[torch.utils.hooks.RemovableHandle] = []
    if rate:
        parameter_depths(model)  # refuses a model without layers
        for _, layers in layer_stacks(model):
            for position, layer in enumerate(layers):
                share = rate * position / (len(layers) - 1)
                if share:
                    handles.append(layer.register_forward_hook(SkippedSamples(share)))
    return handles


class SkippedSamples:
    """Forward hook: while training, a layer's change of a sample is left out with probability `rate`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Tuple[Any, ...], output: Any) -> Any:
        return mixed(inputs[0], output, kept_samples(inputs[0], self.rate)) if module.training else None


def kept_samples(hidden: torch.Tensor, rate: Union[float, torch.Tensor]) -> torch.Tensor:
    """(batch,): how much a layer's change counts, 0 for a share `rate` of the samples and 1 / (1 - rate) for the others."""
    kept = torch.rand(hidden.shape[0], device=hidden.device) >= rate
    return kept.to(exact_dtype(hidden.dtype)) / (1.0 - rate)


def mixed(before: torch.Tensor, output: Any, kept: torch.Tensor) -> Any:
    """A layer's output where `kept` counts of its change of `before`, its input."""
    after = output[0] if isinstance(output, tuple) else output
    if before.shape != after.shape:  # a layer computed for its first tokens alone
        before = before[:, : after.shape[1]]
    result = before + (after - before) * kept.to(after.dtype).view(-1, *[1] * (after.dim() - 1))
    return (result, *output[1:]) if isinstance(output, tuple) else result


def skipped_share(layer: nn.Module) -> Optional[float]:
    """The rate of the layer's own hook, None if it has none."""
    rates = [hook.rate for hook in layer._forward_hooks.values() if isinstance(hook, SkippedSamples)]
    return rates[0] if rates else None


def has_only_skipping(layer: nn.Module) -> bool:
    """Nobody looks at the layer, apart from one hook of stochastic depth."""
    of_all = nn.modules.module
    return len(layer._forward_hooks) <= 1 and not (
        has_hooks(layer, apart_from=(SkippedSamples,))
        or of_all._global_forward_hooks
        or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
    )
