"""The options of fine-tuning as a part of the trainer: parameter groups and model of a training.

Layer-wise learning-rate decay: Clark et al., "ELECTRA", ICLR 2020, section 3.1; for ViT on chest X-rays Xiao et al., WACV 2023.
optimizers=("adamw_torch", {"lr": 1e-4}) is an optimizer by the name that `optim` has for it, and its settings.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.errors import UserError
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path
from ipu_trainer.training.layers import head_parameters, parameter_depths


class FineTuning(StockTrainer):
    """Trainer with layer-wise learning rates, stochastic depth, and settings of an optimizer that was given by its name."""

    optimizer_settings: Mapping[str, Any] = {}

    def set_up_fine_tuning(self) -> None:
        """After Trainer's own __init__. Raises UserError for an optimizer= whose groups are not this trainer's."""
        if self.model_init is None:
            add_drop_path(self.model, getattr(self.args, "drop_path", 0.0))
        if self.optimizer is not None and self._scales_by_depth():
            raise UserError(
                "layer_decay and head_learning_rate_factor divide the parameter groups that this trainer makes, but "
                "optimizers= brings its own. Leave them at 1, or give optimizer_cls_and_kwargs= instead."
            )

    def _scales_by_depth(self) -> bool:
        names = ("layer_decay", "head_learning_rate_factor")
        return any(getattr(self.args, name, 1.0) != 1.0 for name in names)

    def create_optimizer(self, *positional: Any, **named: Any) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*positional, **named)
        if is_new and self.optimizer_settings:
            for group in optimizer.param_groups:
                group.update(self.optimizer_settings)
            optimizer.defaults.update(self.optimizer_settings)
        if is_new and self._scales_by_depth():
            optimizer.param_groups = groups_by_depth(
                self.model, optimizer.param_groups, self.args.layer_decay, self.args.head_learning_rate_factor
            )
        return optimizer

    def call_model_init(self, *positional: Any, **named: Any) -> Any:
        model = super().call_model_init(*positional, **named)
        add_drop_path(model, getattr(self.args, "drop_path", 0.0))
        return model


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


# Settings of a torch optimizer -> the arguments that Trainer reads them from.
_ARGUMENTS = {"lr": "learning_rate", "weight_decay": "weight_decay", "eps": "adam_epsilon"}


def is_named(optimizers: Any) -> bool:
    """Whether optimizers= is (name, settings) rather than (optimizer, scheduler)."""
    return isinstance(optimizers, (tuple, list)) and len(optimizers) == 2 and isinstance(optimizers[0], str)


def with_named_optimizer(args: Any, optimizers: Tuple[str, Mapping[str, Any]]) -> Tuple[Any, Dict[str, Any]]:
    """(a copy of args that makes this optimizer, the settings that arguments cannot say, by name).

    Raises UserError for a name that `optim` does not have, or a setting that the optimizer does not take.
    """
    name, settings = optimizers
    known = [str(item.value) for item in OptimizerNames]
    if name not in known:
        raise UserError(
            f"optimizers=({name!r}, ...): there is no optimizer of this name. There are {', '.join(known)}."
        )
    if not isinstance(settings, Mapping):
        raise UserError(
            f"optimizers=({name!r}, {settings!r}): the second is the optimizer's settings, such as {{'lr': 1e-4}}."
        )
    changed = copy.copy(args)
    changed.optim = OptimizerNames(name)
    left = dict(settings)
    for setting, argument in _ARGUMENTS.items():
        if setting in left:
            setattr(changed, argument, float(left.pop(setting)))
    if "betas" in left:
        changed.adam_beta1, changed.adam_beta2 = (float(beta) for beta in left.pop("betas"))
    optimizer_class, _ = Trainer.get_optimizer_cls_and_kwargs(changed)
    takes = [item for item in inspect.signature(optimizer_class.__init__).parameters if item not in ("self", "params")]
    unknown = sorted(setting for setting in settings if setting not in takes)
    if unknown:
        raise UserError(f"optimizers=({name!r}, ...): it has no {', '.join(unknown)}. It takes {', '.join(takes)}.")
    return changed, left
