"""Checks before training of what stock Trainer refuses after it: an unknown metric, an optimizer that is not installed."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Collection

import torch
from transformers import Trainer, get_scheduler

from ipu_trainer.errors import UserError

# What Trainer itself adds to an evaluation's metrics.
_ALWAYS_THERE = ("loss", "runtime", "samples_per_second", "steps_per_second")


def check_metric(flag: str, name: Any, metrics: Collection[str]) -> None:
    """Raise UserError if name, with or without eval_, is no metric of the recipe. None is none."""
    known = [*metrics, *_ALWAYS_THERE]
    if name is None or name in known or (name.startswith("eval_") and name[len("eval_") :] in known):
        return
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(
        f"--{flag} {name}: an evaluation gives {', '.join(known)}." + (f" Did you mean {near[0]}?" if near else "")
    )


def check_optimizer(trainer: Any) -> None:
    """Raise UserError for an optimizer or a schedule of the trainer's arguments that cannot be made."""
    args = trainer.args
    takes_model = "model" in inspect.signature(Trainer.get_optimizer_cls_and_kwargs).parameters
    try:
        kind, named = trainer.get_optimizer_cls_and_kwargs(args, *([trainer.model] if takes_model else []))
    except (ImportError, ValueError) as error:
        raise UserError(f"--optim {args.optim.value}: {error}") from None
    if not issubclass(kind, torch.optim.Optimizer) or "params" in named or "optimizer_dict" in named:
        return  # of single layers
    try:
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **named)
    except (TypeError, ValueError) as error:
        raise UserError(f"--optim {args.optim.value}: {error}") from None
    specific = getattr(args, "lr_scheduler_kwargs", None) or {}
    more = {"scheduler_specific_kwargs": dict(specific)} if specific else {}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(100), 100, **more)
    except (TypeError, ValueError) as error:
        text = f" --lr_scheduler_kwargs {specific}" if specific else ""
        raise UserError(f"--lr_scheduler_type {args.lr_scheduler_type.value}{text}: {error}") from None
