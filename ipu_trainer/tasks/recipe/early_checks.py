"""Checks before training: what stock Trainer refuses after it, and the planner's warning that a model does not fit on its IPUs."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import sys
from typing import Any, Callable, Collection, Optional, Tuple

import torch
from transformers import Trainer, get_scheduler

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.planner.feasibility import feasibility, smallest_system, why_not_feasible, workload_of
from ipu_trainer.training.execution import changed

_SOME_STEPS = 100  # over which a schedule is tried
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
    """Raise UserError for an optimizer, its arguments or a schedule that cannot be made, or of which a part is not read."""
    args = trainer.args
    kind, named = _optimizer_of(trainer, args.optim_args)
    parts = [part for part in (args.optim_args or "").split(",") if part]
    for place, part in enumerate(parts):
        if _optimizer_of(trainer, ",".join(parts[:place] + parts[place + 1 :])) == (kind, named):
            raise UserError(f"--optim_args {part} would have no effect: --optim {args.optim.value} does not read it.")
    if not issubclass(kind, torch.optim.Optimizer) or "params" in named or "optimizer_dict" in named:
        return  # of single layers
    try:
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **named)
    except (TypeError, ValueError) as error:
        raise UserError(f"--optim {args.optim.value}: {error}") from None
    specific = getattr(args, "lr_scheduler_kwargs", None) or {}
    more = {"scheduler_specific_kwargs": dict(specific)} if specific else {}
    warmup = args.get_warmup_steps(_SOME_STEPS)
    try:
        scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, _SOME_STEPS, **more)
        rates = [
            float(function(step))
            for function in getattr(scheduler, "lr_lambdas", ())
            for step in range(_SOME_STEPS + 1)
        ]
        if not all(map(math.isfinite, rates)):
            raise ValueError("its learning rates are no finite numbers")
    except (TypeError, ValueError, ArithmeticError) as error:
        text = f" --lr_scheduler_kwargs {specific}" if specific else ""
        raise UserError(f"--lr_scheduler_type {args.lr_scheduler_type.value}{text}: {error}") from None


def _optimizer_of(trainer: Any, optim_args: Optional[str]) -> Tuple[Any, Any]:
    """(class, keyword arguments) that the trainer's arguments make, with these optim_args."""
    args = trainer.args
    if any(part.count("=") != 1 for part in (optim_args or "=").split(",")):
        raise UserError(f"--optim_args {optim_args} must be NAME=VALUE, several with commas between them.")
    takes_model = "model" in inspect.signature(Trainer.get_optimizer_cls_and_kwargs).parameters
    try:
        with changed(args, optim_args=optim_args or None):
            found: Tuple[Any, Any] = trainer.get_optimizer_cls_and_kwargs(
                args, *([trainer.model] if takes_model else [])
            )
    except (ImportError, ValueError) as error:
        raise UserError(f"--optim {args.optim.value}: {error}") from None
    return found


def fit_warning(
    model: Any,
    ipu_config: IPUConfig,
    args: Any,
    sequence_length: Optional[int] = None,
    target_length: Optional[int] = None,
) -> str:
    """One line for stderr, or "" where the model fits or may fit. args are TrainingArguments.

    A note where there is no prediction. It never stops a run, as a prediction may be wrong.
    """
    system = smallest_system(ipu_config.num_ipus)
    if system is None:
        return f"warning: {ipu_config.num_ipus} IPUs are more than the largest Pod has. Lower replication_factor."
    try:
        workload = workload_of(model, None, sequence_length, target_length)
        answer = feasibility(ipu_config, workload, system, args.per_device_train_batch_size, _optimizer(args))
    except ValueError as error:
        return f"note: no prediction of memory for this run: {error}"
    if answer.may_run:
        return ""
    reasons = " ".join(finding.text for finding in answer.findings if finding.prevents)
    return f"warning: predicted for IPUs in float16: {reasons}"


def feasibility_check(
    trainer: Any, sequence_length: Optional[int] = None, target_length: Optional[int] = None
) -> Optional[Callable[[IPUConfig, int], Optional[str]]]:
    """is_feasible= of a search by this trainer; None where it runs on no IPU, or where its model cannot be measured."""
    if not trainer.backend.has_executors:
        return None
    try:
        workload = workload_of(trainer.model, None, sequence_length, target_length)
    except ValueError as error:
        warn(f"note: no prediction of memory for the trials: {error}")
        return None
    return functools.partial(why_not_feasible, workload, optimizer=_optimizer(trainer.args))


def _optimizer(args: Any) -> str:
    name = str(getattr(args.optim, "value", args.optim))
    return next((kind for kind in ("sgd", "lamb") if kind in name), "adamw")


def warn(line: str) -> None:
    """Print it to stderr unless it is empty."""
    if line:
        print(line, file=sys.stderr)
