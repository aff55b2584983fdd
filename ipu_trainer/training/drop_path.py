"""Stochastic depth: layers that are left out for some samples while training.

Stochastic depth: Huang et al., "Deep networks with stochastic depth", ECCV 2016, rates growing linearly with depth.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import nn

from ipu_trainer.training.layers import layer_stacks, parameter_depths


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
        if not module.training:
            return None
        return _mixed(inputs[0], output, self.rate)


def _mixed(before: torch.Tensor, output: Any, rate: Union[float, torch.Tensor]) -> Any:
    """A layer's output, for a share `rate` of the samples its input `before`."""
    after = output[0] if isinstance(output, tuple) else output
    if before.shape != after.shape:  # a layer computed for its first tokens alone
        before = before[:, : after.shape[1]]
    shape = (after.shape[0],) + (1,) * (after.dim() - 1)
    kept = (torch.rand(shape, device=after.device) >= rate).to(after.dtype) / (1.0 - rate)
    mixed = before + (after - before) * kept
    return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def compiled_with_skipping(layer: nn.Module, backend: str) -> Optional[Callable[..., Any]]:
    """A layer and its SkippedSamples hook as one compiled function, for `layer._compiled_call_impl`; None without such a hook.

    torch.compile takes a module's forward function and each of its hooks apart, and compiles them anew for each rate. While
    the layer has any other hook it is called as torch does.
    """
    hooks = list(layer._forward_hooks.values())
    if len(hooks) != 1 or not isinstance(hooks[0], SkippedSamples) or _has_other_hooks(layer):
        return None
    # A number would be a constant of the compiled function, and each layer has its own.
    rate = torch.tensor(hooks[0].rate, dtype=torch.float64, device=next(layer.parameters()).device)

    def skipping(*given: Any, **named: Any) -> Any:
        output = layer.forward(*given, **named)
        return _mixed(given[0], output, rate) if layer.training else output

    compiled, taken_apart = torch.compile(skipping, backend=backend), torch.compile(layer._call_impl, backend=backend)

    def call(*given: Any, **named: Any) -> Any:
        alone = list(layer._forward_hooks.values()) == hooks and not _has_other_hooks(layer)
        return compiled(*given, **named) if alone else taken_apart(*given, **named)

    return call


def _has_other_hooks(layer: nn.Module) -> bool:
    """Any but forward hooks of its own."""
    of_all = nn.modules.module
    return bool(
        layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or of_all._global_forward_hooks
        or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
    )
