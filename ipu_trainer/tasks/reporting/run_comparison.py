"""Several runs of one task side by side: results, what was set differently, curves in one drawing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Page,
    Section,
    Table,
    Text,
    differing,
    flat,
    interval,
    number,
)
from ipu_trainer.tasks.reporting.run_report import Run, Watched, training_blocks

# Where a run lies and what it is called are no settings.
_NO_SETTINGS = ("training.output_dir", "training.run_name", "training.logging_dir")
MOST_RUNS = 8


@dataclass(frozen=True)
class Compared:
    """One column: the run, what it is called here, (metric, value, interval or None) rows, and what it was evaluated on."""

    run: Run
    name: str
    headline: Sequence[Tuple[str, Any, Any]]
    evaluated_on: str


def comparison_page(
    columns: Sequence[Compared], notice: str, watched: Watched, results: Sequence[Section], digits: int = 3
) -> Page:
    """results: what the task adds. Raises ValueError unless there are 2 to 8 runs of one task."""
    names = [column.name for column in columns]
    sections = [
        Section("Side by side", _headline(columns, digits)),
        *results,
        Section("What differs", _differences(columns)),
        Section("Training", training_blocks([(column.name, column.run.history) for column in columns], watched)),
    ]
    return Page(f"{len(columns)} runs: {', '.join(names)}", f"task {columns[0].run.task}", notice, sections)


def check_runs(tasks: Sequence[str]) -> None:
    """Raises ValueError unless these are the tasks of 2 to MOST_RUNS runs that can be compared."""
    if not 2 <= len(tasks) <= MOST_RUNS:
        raise UserError(f"{len(tasks)} runs cannot be compared side by side. Give 2 to {MOST_RUNS}.")
    if len(set(tasks)) > 1:
        raise UserError(f"runs of {', '.join(sorted(set(tasks)))} have no metric in common. Compare runs of one task.")


def distinct_names(folders: Sequence[Path]) -> List[str]:
    """The shortest end of each path that no other path has; folders given twice are numbered."""
    parts = [Path(folder).resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        return [f"{part[-1]} ({position})" for position, part in enumerate(parts, start=1)]
    names = []
    for part in parts:
        ends = ((part[-length:], length) for length in range(1, len(part) + 1))
        names.append(next("/".join(end) for end, n in ends if sum(other[-n:] == end for other in parts) == 1))
    return names


def _headline(columns: Sequence[Compared], digits: int) -> List[Block]:
    names = list(dict.fromkeys(name for column in columns for name, _, _ in column.headline))
    values: List[Dict[str, Tuple[Any, Any]]] = [{n: (v, bounds) for n, v, bounds in c.headline} for c in columns]
    rows = []
    for name in names:
        cells = [name]
        for column in values:
            value, bounds = column.get(name, (None, None))
            cells.append(number(value, digits) + (f" ({interval(bounds, digits)})" if bounds else ""))
        rows.append(cells)
    blocks: List[Block] = []
    if len({column.evaluated_on for column in columns}) > 1:
        blocks.append(
            Text(
                "The runs were not evaluated on the same data: their numbers cannot be held against each other.",
                "warning",
            )
        )
    rows.append(["evaluated on", *(column.evaluated_on for column in columns)])
    blocks.append(Table(["", *(column.name for column in columns)], rows))
    return blocks


def _differences(columns: Sequence[Compared]) -> List[Block]:
    records = [
        {
            "model": column.run.record["model"],
            "backend": column.run.record["backend"]["name"],
            **{f"version.{name}": value for name, value in column.run.record["versions"].items()},
            **{f"data.{name}": value for name, value in flat(column.run.record["data"]).items()},
            **flat(column.run.record["settings"]),
        }
        for column in columns
    ]
    names = [n for n in dict.fromkeys(name for record in records for name in record) if n not in _NO_SETTINGS]
    rows = differing(names, records)
    if not rows:
        return [Text("Nothing: model, data, versions and settings are the same.")]
    return [Table(["", *(column.name for column in columns)], rows)]
