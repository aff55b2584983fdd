"""Tasks of `ipu-trainer`: those of this package, and those that other packages add as entry points of "ipu_trainer.tasks".

[options.entry_points]
ipu_trainer.tasks =
    sentence-pairs = my_package.sentence_pairs:TASK
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError

GROUP = "ipu_trainer.tasks"
# The same rows as in setup.cfg: a checkout that is not installed has no entry points.
_BUILT_IN = {
    "chest-xray": "ipu_trainer.tasks.chest_xray.commands:TASK",
    "language-modeling": "ipu_trainer.tasks.language_modeling.train:TASK",
    "seq2seq": "ipu_trainer.tasks.seq2seq.train:TASK",
}


@dataclass
class SearchTask:
    """What a hyper-parameter search needs of a task: a trainer with model_init, its metric and direction, lines on the data,
    the settings that define a trial's run, what skips a trial that cannot run, and the names of all metrics."""

    trainer: Any
    objective: str
    direction: str
    about: str
    settings: Dict[str, Any]
    is_feasible: Optional[Callable[[Any, int], Optional[str]]] = None
    metrics: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """What `ipu-trainer COMMAND NAME` runs: functions of the flags behind the name, as words.

    commands: evaluate, predict, export, prepare or phantoms where the task has them, which return the exit code.
    write_report(folder, output or None, **inputs) and write_comparison(folders, output) return the path of an HTML page;
    report_inputs names the inputs. predictor(run) returns the function behind Run.predict.
    """

    train: Callable[[Sequence[str]], Any]
    search: Optional[Callable[[Sequence[str]], SearchTask]] = None
    write_report: Optional[Callable[..., Path]] = None
    write_comparison: Optional[Callable[[Sequence[Path], Path], Path]] = None
    report_inputs: Tuple[str, ...] = ()
    commands: Mapping[str, Callable[[Sequence[str]], int]] = field(default_factory=dict)
    predictor: Optional[Callable[[Any], Callable[..., Any]]] = None


def task_names() -> List[str]:
    """Names of all tasks that are installed; none is imported."""
    return [*_BUILT_IN, *sorted(name for name in _registered() if name not in _BUILT_IN)]


def load_task(name: str) -> Task:
    """Import a task. Raises UserError for an unknown name, two packages with one name, or what cannot be imported."""
    places = _registered().get(name, [])
    if name in _BUILT_IN:
        places = list(dict.fromkeys([_BUILT_IN[name], *places]))
    if not places:
        raise UserError(f"task {name!r} is not one of {', '.join(task_names())}.")
    if len(places) > 1:
        raise UserError(f"task {name!r} is registered by {' and '.join(places)}. Uninstall one of these packages.")
    module, _, attribute = places[0].partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever another package does as it is imported
        if name in _BUILT_IN:
            raise
        raise UserError(
            f"task {name!r} ({places[0]}) cannot be imported: {type(error).__name__}: {error}. Update or uninstall its package."
        ) from error
    if not isinstance(task, Task):
        raise UserError(
            f"task {name!r}: {places[0]} is a {type(task).__name__}, and not an ipu_trainer.tasks.task.Task."
        )
    return task


def _registered() -> Dict[str, List[str]]:
    """Entry points by name: "module:attribute" of each package that has one."""
    if sys.version_info >= (3, 10):
        found = list(importlib.metadata.entry_points(group=GROUP))
    else:
        found = list(importlib.metadata.entry_points().get(GROUP, ()))
    places: Dict[str, List[str]] = {}
    for point in found:
        if point.value not in places.setdefault(point.name, []):
            places[point.name].append(point.value)
    return places
