"""The task's report page: scores beside their baseline, curves, and what the model wrote for pairs it had not seen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Case,
    Cases,
    Page,
    Section,
    Text,
    Tiles,
    number,
    write_page,
)
from ipu_trainer.tasks.reporting.run_comparison import Compared, check_runs, comparison_page, distinct_names
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, Run, Watched, load_run, run_page

WATCHED = Watched("eval_chrf", "validation chrF")
_NOTICE = ""
_SCORES = (("BLEU", "bleu"), ("chrF", "chrf"), ("exactly right", "exact_match"), ("loss", "loss"))
_MOST_EXAMPLES = 24


def write_report(folder: Path, output: Optional[Path] = None) -> Path:
    """Write report.html of a finished run, into its folder or to output; returns the path."""
    file = Path(output) if output else Path(folder) / REPORT_FILE
    write_page(file, page(load_run(folder)))
    return file


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write one page that holds several runs side by side; returns the path."""
    runs = [load_run(folder) for folder in folders]
    check_runs([run.task for run in runs])
    columns = [
        Compared(run, name, headline(run), f"{run.record['data']['fingerprint']}")
        for run, name in zip(runs, distinct_names(folders))
    ]
    examples = [Section(f"Written by {column.name}", example_blocks(column.run)) for column in columns]
    write_page(output, comparison_page(columns, _NOTICE, WATCHED, examples))
    return Path(output)


def page(run: Run) -> Page:
    baseline = run.metrics["baseline"]
    details = {
        label: f"words of the name alone: {number(baseline[key], 2)}" for label, key in _SCORES if key in baseline
    }
    rows = [(name, number(value, 2), details.get(name, "")) for name, value, _ in headline(run)]
    rows.append(("pairs", f"{run.metrics['num_pairs']:,}", "of packages or groups not trained on"))
    recipe = run.record["settings"]["recipe"]
    results = [Section("What it writes", example_blocks(run))]
    workload = ("seq2seq-lm", int(recipe["source_length"]), int(recipe["target_length"]))
    return run_page(run, f"Seq2seq: {run.name}", _NOTICE, Tiles(rows), results, WATCHED, workload)


def headline(run: Run) -> List[Tuple[str, Any, Any]]:
    """(name, value, None) of what runs are compared by."""
    return [(label, run.metrics[key], None) for label, key in _SCORES if key in run.metrics]


def example_blocks(run: Run) -> List[Block]:
    """The first pairs of predictions.csv; without generation there is none."""
    file = run.folder / "predictions.csv"
    if not file.is_file():
        return [Text("The run was not asked to write (predict_with_generate False).", "note")]
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [row for row, _ in zip(csv.DictReader(opened), range(_MOST_EXAMPLES))]
    cases = [
        Case(str(row.get("name")), [f"reference: {row.get('reference')}", f"written: {row.get('written')}"], [])
        for row in rows
    ]
    return [
        Cases(cases),
        Text(f"The first {len(cases)} of {run.metrics['num_pairs']:,} pairs; predictions.csv has all.", "note"),
    ]
