"""The page that compares several runs of one task; TaskReport has both pages of a task with one evaluation a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Page,
    Section,
    Table,
    Text,
    Tiles,
    interval,
    number,
    write_page,
)
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, ValidationMetric, run_page, training_blocks
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE, Run, flat, load_run

Headline = Sequence[Tuple[str, Any, Any]]  # (metric, value, interval or None)
_NAMES_OF_THE_RUN = ("training.output_dir", "training.run_name", "training.logging_dir")
MOST_RUNS = 8
_AGAIN = "Take the file from a copy, or train the run again into another folder."


@dataclass(frozen=True)
class ComparedRun:
    """One column of the comparison."""

    run: Run
    name: str
    headline: Headline
    evaluated_on: str


def comparison_page(
    columns: Sequence[ComparedRun], notice: str, metric: ValidationMetric, results: Sequence[Section]
) -> Page:
    """results: the task's own sections. The runs are those that check_runs accepts."""
    names = [column.name for column in columns]
    sections = [
        Section("Side by side", _headline(columns)),
        *results,
        Section("What differs", _differences(columns)),
        Section("Training", training_blocks([(column.name, column.run.history) for column in columns], metric)),
    ]
    return Page(f"{len(columns)} runs: {', '.join(names)}", f"task {columns[0].run.task}", notice, sections)


def check_runs(tasks: Sequence[str]) -> None:
    """Raises UserError unless there are 2 to MOST_RUNS runs, all of one task."""
    if not 2 <= len(tasks) <= MOST_RUNS:
        raise UserError(f"{len(tasks)} runs cannot be compared side by side. Give 2 to {MOST_RUNS}.")
    if len(set(tasks)) > 1:
        raise UserError(f"runs of {', '.join(sorted(set(tasks)))} have no metric in common. Compare runs of one task.")


def distinct_names(folders: Sequence[Path]) -> List[str]:
    """For each folder the shortest end of its path that no other folder shares; folders given twice are numbered."""
    parts = [Path(folder).resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        return [f"{part[-1]} ({position})" for position, part in enumerate(parts, start=1)]
    names = []
    for part in parts:
        ends = ((part[-length:], length) for length in range(1, len(part) + 1))
        names.append(next("/".join(end) for end, n in ends if sum(other[-n:] == end for other in parts) == 1))
    return names


def _headline(columns: Sequence[ComparedRun]) -> List[Block]:
    names = list(dict.fromkeys(name for column in columns for name, _, _ in column.headline))
    values: List[Dict[str, Tuple[Any, Any]]] = [{n: (v, bounds) for n, v, bounds in c.headline} for c in columns]
    rows = []
    for name in names:
        cells = [name]
        for column in values:
            value, bounds = column.get(name, (None, None))
            cells.append(number(value) + (f" ({interval(bounds)})" if bounds else ""))
        rows.append(cells)
    blocks: List[Block] = []
    if len({column.evaluated_on for column in columns}) > 1:
        warning = "The runs were not evaluated on the same data, so their numbers cannot be compared."
        blocks.append(Text(warning, "warning"))
    rows.append(["evaluated on", *(column.evaluated_on for column in columns)])
    blocks.append(Table(["", *(column.name for column in columns)], rows))
    return blocks


def _differences(columns: Sequence[ComparedRun]) -> List[Block]:
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
    rows = []
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        if name not in _NAMES_OF_THE_RUN and any(value != values[0] for value in values[1:]):
            rows.append([name, *("–" if value is None else str(value) for value in values)])
    if not rows:
        return [Text("Nothing: model, data, versions and settings are the same.")]
    return [Table(["", *(column.name for column in columns)], rows)]


@dataclass(frozen=True)
class TaskReport:
    """The parts of a report that a task adds.

    headline: the numbers by which runs are compared. samples: what the model wrote. workload: what planner.measure takes
    besides the model. metrics, record: what metrics.json and run.json must hold, as json_files.check_shape takes it.
    """

    title: str
    metric: ValidationMetric
    headline: Callable[[Run], Headline]
    tiles: Callable[[Run], Tiles]
    samples: Callable[[Run], List[Block]]
    workload: Callable[[Run], Sequence[Any]]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def load(self, folder: Path) -> Run:
        """The run, whose files hold what the report reads. Raises UserError for any other."""
        run = load_run(folder)
        check_shape(run.metrics, self.metrics, run.folder / METRICS_FILE, _AGAIN)
        check_shape(run.record, self.record, run.folder / RUN_FILE, _AGAIN)
        return run

    def write(self, folder: Path, output: Optional[Path] = None) -> Path:
        """Write report.html of a finished run, into its folder or to output; returns the path."""
        run, file = self.load(folder), Path(output) if output else Path(folder) / REPORT_FILE
        results = [Section("Samples", self.samples(run))]
        title, workload = f"{self.title}: {run.name}", self.workload(run)
        write_page(file, run_page(run, title, "", self.tiles(run), results, self.metric, workload))
        return file

    def write_comparison(self, folders: Sequence[Path], output: Path) -> Path:
        """Write one page that compares several runs; returns the path."""
        runs = [self.load(folder) for folder in folders]
        check_runs([run.task for run in runs])
        columns = [
            ComparedRun(run, name, self.headline(run), str(run.record["data"].get("fingerprint", "")))
            for run, name in zip(runs, distinct_names(folders))
        ]
        samples = [Section(f"Samples of {column.name}", self.samples(column.run)) for column in columns]
        write_page(output, comparison_page(columns, "", self.metric, samples))
        return Path(output)
