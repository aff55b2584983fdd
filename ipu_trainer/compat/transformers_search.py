"""What Trainer reports of a trial to a hyper-parameter search."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

from ipu_trainer.compat.internals import Internal

REPORT = Internal(
    "transformers.Trainer._report_to_hp_search",
    "4.29 reports one objective where a study has several, and fails",
    "4.29",
    "5.24",
    "tests/training/test_hyperparameter_search.py::test_several_directions_give_the_pareto_front",
)


@contextlib.contextmanager
def reporting_to(trainer: Any, report: Callable[..., None]) -> Iterator[None]:
    """Inside the block evaluations of a trial call report(trial, step, metrics) instead of Trainer's own method."""
    trainer._report_to_hp_search = report
    try:
        yield
    finally:
        del trainer._report_to_hp_search
