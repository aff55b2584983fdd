"""Parameter groups with a learning rate by depth, and stochastic depth: how a pre-trained model is fine-tuned gently.

Layer-wise decay: Clark et al., "ELECTRA", ICLR 2020, section 3.1; for ViT on chest X-rays Xiao et al., WACV 2023.
Stochastic depth: Huang et al., "Deep networks with stochastic depth", ECCV 2016, rates growing linearly with depth.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import nn

from ipu_trainer.training.layers import head_parameters, layer_stacks, parameter_depths


def groups_by_depth(
    model: nn.Module, groups: Sequence[Mapping[str, Any]], layer_decay: float, head_factor: float
) -> List[Dict[str, Any]]:
    """An optimizer's parameter groups, divided so that each has one learning rate.

    A parameter at depth d of D gets its group's learning rate x layer_decay^(D - d); the head's is multiplied by
    head_factor instead. Everything else of a group (weight decay, betas, ...) stays.
    Raises ValueError if the model has no layers to go by, or no head.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if layer_decay == 1.0:
        depths, deepest = dict.fromkeys(names.values(), 0), 0
    else:
        depths, deepest = parameter_depths(model)
    head = set(head_parameters(model))
    if head_factor != 1.0 and not head:
        raise ValueError(
            f"head_learning_rate_factor {head_factor} needs a model with a head, but {type(model).__name__} has no "
            "parameters outside its base model. Use 1."
        )
    divided: List[Dict[str, Any]] = []
    for group in groups:
        by_scale: Dict[float, List[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            scale = head_factor if name in head else layer_decay ** (deepest - depths[name])
            by_scale.setdefault(scale, []).append(parameter)
        divided += [
            {**group, "params": parameters, "lr": group["lr"] * scale} for scale, parameters in by_scale.items()
        ]
    return divided


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
        before, after = inputs[0], output[0] if isinstance(output, tuple) else output
        if before.shape != after.shape:  # a layer computed for its first tokens alone
            before = before[:, : after.shape[1]]
        shape = (after.shape[0],) + (1,) * (after.dim() - 1)
        kept = (torch.rand(shape, device=after.device) >= self.rate).to(after.dtype) / (1.0 - self.rate)
        mixed = before + (after - before) * kept
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed
