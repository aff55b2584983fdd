"""Before a run: whether the planner predicts that its model does not fit on the IPUs of its IPUConfig."""

from __future__ import annotations

import sys
from typing import Any, Optional

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.planner.feasibility import feasibility, smallest_system, workload_of


def fit_warning(
    model: Any,
    ipu_config: IPUConfig,
    args: Any,
    sequence_length: Optional[int] = None,
    target_length: Optional[int] = None,
) -> str:
    """One line for stderr, or "" where the model fits or may fit. args are TrainingArguments.

    Says so where there is no prediction; it never stops a run, as it may be wrong.
    """
    system = smallest_system(ipu_config.num_ipus)
    if system is None:
        return f"warning: {ipu_config.num_ipus} IPUs are more than the largest Pod has. Lower replication_factor."
    name = str(getattr(args.optim, "value", args.optim))
    optimizer = next((kind for kind in ("sgd", "lamb") if kind in name), "adamw")
    try:
        workload = workload_of(model, None, sequence_length, target_length)
        answer = feasibility(ipu_config, workload, system, args.per_device_train_batch_size, optimizer)
    except ValueError as error:
        return f"note: no prediction of memory for this run: {error}"
    if answer.may_run:
        return ""
    reasons = " ".join(finding.text for finding in answer.findings if finding.prevents)
    return f"warning: predicted for IPUs in float16: {reasons}"


def warn(line: str) -> None:
    """Print it to stderr unless it is empty."""
    if line:
        print(line, file=sys.stderr)
