"""The parts that report.html has for every task: the run, its settings, training curves and batches."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Sequence, Tuple

import torch

from ipu_trainer.tasks.reporting.drawing import curves, from_history, to_svg
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Cards,
    Collapsed,
    Drawing,
    Facts,
    Page,
    Preformatted,
    Section,
    Text,
    Tiles,
    number,
)
from ipu_trainer.tasks.reporting.ipu_section import ipu_blocks
from ipu_trainer.tasks.run_record import Run, flat

REPORT_FILE = "report.html"
# Logged values that are drawn where a run has them: (key, label, factor).
_RATES = (
    ("samples_per_second", "samples per second", 1.0),
    ("tokens_per_second", "tokens per second", 1.0),
    ("data_wait_share", "share of time waiting for data", 1.0),
    ("memory_bytes", "memory, GiB", 2.0**-30),
    ("loss_scale", "loss scale", 1.0),
    ("learning_rate", "learning rate", 1.0),
)


@dataclass(frozen=True)
class ValidationMetric:
    """The metric that a task tracks during training: its key in the log history and its name."""

    key: str
    label: str
    logarithmic: bool = False


def run_page(
    run: Run,
    title: str,
    notice: str,
    tiles: Tiles,
    results: Sequence[Section],
    metric: ValidationMetric,
    workload: Sequence[Any],
) -> Page:
    """The page of one run: the task's tiles and results, and the parts of every run.

    workload: what planner.measure takes besides the model: its task and, for text, the tokens of a sample (and of its
    target). The prediction for a run with an IPUConfig needs it.
    """
    record, versions = run.record, run.record["versions"]
    sections = [
        Section("At a glance", [tiles, facts(run)]),
        *results,
        Section("Training", training_blocks([(run.name, run.history)], metric)),
        Section("Batches", [Preformatted(str(record["batch_table"]))]),
    ]
    on_ipus = ipu_blocks(run, workload)
    if on_ipus:
        sections.append(Section("On IPUs", on_ipus))
    sections.append(Section("All settings", settings_blocks(run)))
    subtitle = [record["task"], record["model"], f"backend {record['backend']['name']}"]
    subtitle.append(f"ipu_trainer {versions.get('ipu_trainer', '')}")
    return Page(title, " · ".join(subtitle), notice, sections)


def report_or_reason(write_report: Callable[[Path], Path], run_dir: Path) -> bool:
    """Write the report of a run that has just been evaluated, or print why not. Returns whether there is one.

    All results are on disk, so the run did not fail.
    """
    try:
        write_report(run_dir)
        return True
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:  # the training may still fill the GPU
        print(f"no {REPORT_FILE}: {error} To try again: ipu-trainer report {run_dir}", file=sys.stderr)
        return False


def facts(run: Run) -> Facts:
    record = run.record
    backend = record["backend"]
    rows: List[Tuple[str, str]] = [
        ("run", run.name),
        ("model", str(record["model"])),
        ("backend", f"{backend['name']} on {backend.get('torch_device', backend.get('device', ''))}"),
        ("reason for the backend", str(backend["reason"])),
        ("seed", str(record["seed"])),
    ]
    if "num_parameters" in record:
        rows.append(("parameters", f"{record['num_parameters']:,}"))
    if "precision" in record:
        rows.append(("precision", f"{record['precision']['name']} ({record['precision']['reason']})"))
    for name, value in flat(record["data"]).items():
        if isinstance(value, (str, int, float)) and not name.startswith("settings.") and len(rows) < 20:
            rows.append((f"data: {name.replace('.', ' ')}", f"{value:,}" if isinstance(value, int) else str(value)))
    end: Mapping[str, Any] = next((entry for entry in reversed(run.history) if "train_runtime" in entry), {})
    if end:
        rows.append(("training took", f"{end['train_runtime']:,.0f} s, {number(end.get('epoch'), 1)} epochs"))
        if "train_samples_per_second" in end:
            rows.append(("samples per second", number(end["train_samples_per_second"], 1)))
    rows.append(("software", ", ".join(f"{name} {value}" for name, value in record["versions"].items())))
    return Facts(rows)


def training_blocks(runs: Sequence[Tuple[str, Sequence[Mapping[str, Any]]]], metric: ValidationMetric) -> List[Block]:
    """Curves of one or several runs, one drawing a logged value with a line for each run."""
    if not any(history for _, history in runs):
        return [Text("This run has no log history. Releases since 0.1.0 write it as history.json.", "note")]
    drawings = []
    shown = [("loss", "training loss", 1.0), ("eval_loss", "validation loss", 1.0), (metric.key, metric.label, 1.0)]
    for key, label, factor in [*shown, *_RATES]:
        logarithmic = key == metric.key and metric.logarithmic
        lines = [(name, *from_history(history, key, factor)) for name, history in runs]
        lines = [line for line in lines if line[1]]
        if not lines or (key not in ("loss", metric.key) and all(len(set(y)) < 2 for _, _, y in lines)):
            continue
        figure = curves(lines, "epoch", label, logarithmic, markers=key.startswith("eval_"))
        drawings.append(Drawing(to_svg(figure), label, "card"))
    if not drawings:
        return [Text("The log history holds no losses: the run ended before the first log.", "note")]
    return [Cards(drawings)]


def settings_blocks(run: Run) -> List[Block]:
    groups = run.record.get("settings", {})
    blocks: List[Block] = [
        Text(
            "The settings in run.json, defaults included. The same command with these settings repeats the run.", "note"
        )
    ]
    for name, values in groups.items():
        rows = [(key, json.dumps(value, default=str)) for key, value in sorted(flat(values).items())]
        blocks.append(Collapsed(f"{name.replace('_', ' ')} ({len(rows)})", [Facts(rows)]))
    return blocks
