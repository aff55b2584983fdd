"""Parameter groups with a learning rate by depth: how a pre-trained model is fine-tuned gently.

Layer-wise decay: Clark et al., "ELECTRA", ICLR 2020, section 3.1; for ViT on chest X-rays Xiao et al., WACV 2023.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from torch import nn

from ipu_trainer.errors import UserError
from ipu_trainer.training.layers import head_parameters, parameter_depths


def groups_by_depth(
    model: nn.Module, groups: Sequence[Mapping[str, Any]], layer_decay: float, head_factor: float
) -> List[Dict[str, Any]]:
    """An optimizer's parameter groups, divided so that each has one learning rate.

    A parameter at depth d of D gets its group's learning rate x layer_decay^(D - d); the head's is multiplied by
    head_factor instead. Everything else of a group (weight decay, betas, ...) stays.
    Raises UserError if the model has no layers to go by, or no head.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if layer_decay == 1.0:
        depths, deepest = dict.fromkeys(names.values(), 0), 0
    else:
        depths, deepest = parameter_depths(model)
    head = set(head_parameters(model))
    if head_factor != 1.0 and not head:
        raise UserError(
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
