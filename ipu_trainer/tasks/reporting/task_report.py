"""report.html of a task with one evaluation a run: what language modelling and seq2seq share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

from ipu_trainer.tasks.reporting.finished_run import Run, load_run
from ipu_trainer.tasks.reporting.html_document import Block, Section, Tiles, write_page
from ipu_trainer.tasks.reporting.run_comparison import (
    ComparedRun,
    Headline,
    check_runs,
    comparison_page,
    distinct_names,
)
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, ValidationMetric, run_page


@dataclass(frozen=True)
class TaskReport:
    """The parts of a report that a task adds.

    headline: the numbers by which runs are compared. samples: what the model wrote. workload: what planner.measure takes
    besides the model.
    """

    title: str
    metric: ValidationMetric
    headline: Callable[[Run], Headline]
    tiles: Callable[[Run], Tiles]
    samples: Callable[[Run], List[Block]]
    workload: Callable[[Run], Sequence[Any]]

    def write(self, folder: Path, output: Optional[Path] = None) -> Path:
        """Write report.html of a finished run, into its folder or to output; returns the path."""
        run, file = load_run(folder), Path(output) if output else Path(folder) / REPORT_FILE
        results = [Section("Samples", self.samples(run))]
        title, workload = f"{self.title}: {run.name}", self.workload(run)
        write_page(file, run_page(run, title, "", self.tiles(run), results, self.metric, workload))
        return file

    def write_comparison(self, folders: Sequence[Path], output: Path) -> Path:
        """Write one page that compares several runs; returns the path."""
        runs = [load_run(folder) for folder in folders]
        check_runs([run.task for run in runs])
        columns = [
            ComparedRun(run, name, self.headline(run), str(run.record["data"].get("fingerprint", "")))
            for run, name in zip(runs, distinct_names(folders))
        ]
        samples = [Section(f"Samples of {column.name}", self.samples(column.run)) for column in columns]
        write_page(output, comparison_page(columns, "", self.metric, samples))
        return Path(output)
