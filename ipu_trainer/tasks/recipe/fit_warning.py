"""The planner's warning, before a run or a trial of a search, that the model does not fit on the IPUs of its IPUConfig."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, Optional

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.planner.feasibility import feasibility, smallest_system, why_not_feasible, workload_of


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
