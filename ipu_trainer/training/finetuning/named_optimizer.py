"""optimizers=("adamw_torch", {"lr": 1e-4}): an optimizer by the name that `optim` has for it, and its settings."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Dict, Mapping, Tuple

import torch
from transformers import Trainer
from transformers.training_args import OptimizerNames

from ipu_trainer.errors import UserError

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


def apply_settings(optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> None:
    """Set what arguments cannot say, such as momentum, in all groups of a fresh optimizer."""
    for group in optimizer.param_groups:
        group.update(settings)
    optimizer.defaults.update(settings)
