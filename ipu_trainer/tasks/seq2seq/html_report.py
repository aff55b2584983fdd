"""report.html of a seq2seq run: scores beside their baseline, curves, and predictions for pairs outside the training set."""

from __future__ import annotations

import csv
from typing import List, Tuple

from ipu_trainer.tasks.reporting.finished_run import Run
from ipu_trainer.tasks.reporting.html_document import Block, Case, Cases, Text, Tiles, number
from ipu_trainer.tasks.reporting.run_comparison import Headline
from ipu_trainer.tasks.reporting.run_report import ValidationMetric
from ipu_trainer.tasks.reporting.task_report import TaskReport

METRIC = ValidationMetric("eval_chrf", "validation chrF")
_SCORES = (("BLEU", "bleu"), ("chrF", "chrf"), ("exactly right", "exact_match"), ("loss", "loss"))
_MOST_EXAMPLES = 24


def headline(run: Run) -> Headline:
    return [(label, run.metrics[key], None) for label, key in _SCORES if key in run.metrics]


def tiles(run: Run) -> Tiles:
    baseline = run.metrics["baseline"]
    details = {
        label: f"words of the name alone: {number(baseline[key], 2)}" for label, key in _SCORES if key in baseline
    }
    rows = [(name, number(value, 2), details.get(name, "")) for name, value, _ in headline(run)]
    return Tiles([*rows, ("pairs", f"{run.metrics['num_pairs']:,}", "of packages or groups not trained on")])


def samples(run: Run) -> List[Block]:
    """The first pairs of predictions.csv, which a run without generation does not have."""
    file = run.folder / "predictions.csv"
    if not file.is_file():
        return [Text("The run generated no text (predict_with_generate False).", "note")]
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [row for row, _ in zip(csv.DictReader(opened), range(_MOST_EXAMPLES))]
    cases = [
        Case(str(row.get("name")), [f"reference: {row.get('reference')}", f"written: {row.get('written')}"], [])
        for row in rows
    ]
    note = f"The first {len(cases)} of {run.metrics['num_pairs']:,} pairs; predictions.csv has all."
    return [Cases(cases), Text(note, "note")]


def workload(run: Run) -> Tuple[str, int, int]:
    recipe = run.record["settings"]["recipe"]
    return "seq2seq-lm", int(recipe["source_length"]), int(recipe["target_length"])


_REPORT = TaskReport("Seq2seq", METRIC, headline, tiles, samples, workload)
write_report, write_comparison = _REPORT.write, _REPORT.write_comparison
