"""What every task's page shows of a run: what ran, how it learned, how its batches were cut, and what IPUs would make of it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import torch

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.machine.hardware import SYSTEMS
from ipu_trainer.machine.schedule import Schedule, pipelined_training
from ipu_trainer.planner import report as plan_report
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.search import Plan
from ipu_trainer.planner.time import predict_time
from ipu_trainer.planner.workload import Workload, measure
from ipu_trainer.simulator.analysis.stages import StageCost
from ipu_trainer.tasks.reporting.drawing import curves, from_history, stage_timeline
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Cards,
    Drawing,
    Facts,
    Folded,
    Page,
    Preformatted,
    Section,
    Text,
    Tiles,
    flat,
    number,
)
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE, read_history, read_run

REPORT_FILE = "report.html"
# Logged values that get a drawing of their own where a run has them: (key, label, factor).
_RATES = (
    ("samples_per_second", "samples a second", 1.0),
    ("tokens_per_second", "tokens a second", 1.0),
    ("data_wait_share", "share of time waiting for data", 1.0),
    ("memory_bytes", "memory, GiB", 2.0**-30),
    ("loss_scale", "loss scale", 1.0),
    ("learning_rate", "learning rate", 1.0),
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, run.json, metrics.json and Trainer's log history (empty where none was kept)."""

    folder: Path
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def task(self) -> str:
        return str(self.record["task"])


@dataclass(frozen=True)
class Watched:
    """The validation value that a task's training is watched by: its key in the log history and its name."""

    key: str
    label: str
    logarithmic: bool = False


def load_run(folder: Path) -> Run:
    """Raises ValueError if the folder holds no finished run or its files are damaged."""
    record = read_run(folder)
    return Run(Path(folder), record, read_json(Path(folder) / METRICS_FILE), read_history(folder))


def task_of(folder: Path) -> str:
    """The task of a run, or of the run that an evaluation is of. Raises ValueError for a folder that is neither."""
    folder = Path(folder)
    if (folder / RUN_FILE).is_file() or not (folder / METRICS_FILE).is_file():
        return str(read_run(folder)["task"])
    return str(read_run(Path(str(read_json(folder / METRICS_FILE).get("run", folder))))["task"])


def read_json(path: Path) -> Dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). It is written at the end of a run.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object. It is written at the end of a run.")
    return value


def run_page(
    run: Run,
    title: str,
    notice: str,
    tiles: Tiles,
    results: Sequence[Section],
    watched: Watched,
    workload: Sequence[Any],
) -> Page:
    """The page of one run: the task's tiles and results, between what all runs have.

    workload: what planner.measure takes besides the model: its task and, for text, the tokens of a sample (and of its
    target). It is for the prediction where an IPUConfig was given.
    """
    record = run.record
    backend = record["backend"]
    sections = [
        Section("At a glance", [tiles, facts(run)]),
        *results,
        Section("Training", training_blocks([(run.name, run.history)], watched)),
        Section("Batches", [Preformatted(str(record["batch_table"]))]),
    ]
    on_ipus = ipu_blocks(run, workload)
    if on_ipus:
        sections.append(Section("On IPUs", on_ipus))
    sections.append(Section("Everything that was set", settings_blocks(run)))
    subtitle = f"{record['task']} · {record['model']} · backend {backend['name']} · ipu_trainer {_version(record)}"
    return Page(title, subtitle, notice, sections)


def report_or_reason(write_report: Callable[[Path], Path], run_dir: Path) -> None:
    """Write the page of what has just finished. All results are on disk by now: what stops the page is said, no more."""
    try:
        write_report(run_dir)
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:  # a GPU may still be full of the training
        print(f"no {REPORT_FILE}: {error} To try again: ipu-trainer report {run_dir}", file=sys.stderr)


def facts(run: Run) -> Facts:
    record = run.record
    backend = record["backend"]
    rows: List[Tuple[str, str]] = [
        ("run", run.name),
        ("model", str(record["model"])),
        ("backend", f"{backend['name']} on {backend.get('torch_device', backend.get('device', ''))}"),
        ("why this backend", str(backend["reason"])),
        ("seed", str(record["seed"])),
    ]
    if "num_parameters" in record:
        rows.append(("parameters", f"{record['num_parameters']:,}"))
    if "precision" in record:
        rows.append(("precision", f"{record['precision']['name']} ({record['precision']['reason']})"))
    for name, value in flat(record["data"]).items():
        if isinstance(value, (str, int, float)) and not name.startswith("settings.") and len(rows) < 20:
            rows.append((f"data: {name.replace('.', ' ')}", f"{value:,}" if isinstance(value, int) else str(value)))
    ended: Mapping[str, Any] = next((entry for entry in reversed(run.history) if "train_runtime" in entry), {})
    if ended:
        rows.append(("training took", f"{ended['train_runtime']:,.0f} s, {number(ended.get('epoch'), 1)} epochs"))
        if "train_samples_per_second" in ended:
            rows.append(("samples a second", number(ended["train_samples_per_second"], 1)))
    rows.append(("software", ", ".join(f"{name} {value}" for name, value in record["versions"].items())))
    return Facts(rows)


def training_blocks(runs: Sequence[Tuple[str, Sequence[Mapping[str, Any]]]], watched: Watched) -> List[Block]:
    """Curves of one or several runs, side by side in each drawing."""
    if not any(history for _, history in runs):
        return [
            Text("No log history was kept beside this run: it is written as history.json since release 0.1.0.", "note")
        ]
    drawings = []
    shown = [("loss", "training loss", 1.0), ("eval_loss", "validation loss", 1.0), (watched.key, watched.label, 1.0)]
    for key, label, factor in [*shown, *_RATES]:
        logarithmic = key == watched.key and watched.logarithmic
        lines = [(name, *from_history(history, key, factor)) for name, history in runs]
        lines = [line for line in lines if line[1]]
        if not lines or (key not in ("loss", watched.key) and all(len(set(y)) < 2 for _, _, y in lines)):
            continue
        told = lines if len(runs) > 1 else [(label, *lines[0][1:])]
        drawings.append(Drawing(curves(told, "epoch", label, logarithmic, key.startswith("eval_")), label, "card"))
    if not drawings:
        return [Text("The log history holds no losses: the run ended before the first log.", "note")]
    return [Cards(drawings)]


def settings_blocks(run: Run) -> List[Block]:
    groups = run.record.get("settings", {})
    blocks: List[Block] = [
        Text("As run.json has them, defaults included; the same command with these settings repeats the run.", "note")
    ]
    for name, values in groups.items():
        rows = [(key, json.dumps(value, default=str)) for key, value in sorted(flat(values).items())]
        blocks.append(Folded(f"{name.replace('_', ' ')} ({len(rows)})", [Facts(rows)]))
    return blocks


def ipu_blocks(run: Run, workload_of: Sequence[Any]) -> List[Block]:
    """Pipeline and prediction for the IPUConfig that the run was given; empty where it was given none."""
    settings = run.record["settings"]
    training = settings["training"]
    named = training.get("ipu_config") or settings["recipe"].get("ipu_config")  # where older runs have it
    if not named and not training.get("ipu_config_overrides"):
        return []
    try:
        config = IPUConfig.from_dict(settings["ipu_config"])
        if training.get("ipu_config_overrides"):
            config = config.updated_from_string(training["ipu_config_overrides"])
        if training["gradient_accumulation_steps"] > 1:
            config = config.updated(gradient_accumulation_steps=training["gradient_accumulation_steps"])
        plan, workload, system = _plan(run, config, workload_of)
    except (ValueError, OSError) as error:
        return [Text(f"No prediction for this model and IPUConfig: {error}", "warning")]
    low, high = plan.time.interval
    stages = plan.job.num_stages(workload)
    blocks: List[Block] = [
        Text(
            "Predicted by ipu-trainer's planner from the model's shapes, for "
            f"{named or 'the IPUConfig'} on {system}. These are predictions and no measurements: no IPU took part in them.",
            "warning",
        ),
        Tiles(
            [
                ("throughput, predicted", f"{plan.time.throughput:,.0f} samples/s", f"{low:,.0f} – {high:,.0f}"),
                ("fullest IPU, predicted", f"{100 * plan.memory.share:.0f} % of SRAM", plan.memory.band),
                ("host step, predicted", f"{1e3 * plan.time.step_s:,.1f} ms", f"{plan.time.samples} samples"),
                ("IPUs", str(plan.job.num_ipus), f"{plan.job.replicas} replicas of {len(plan.job.layers_per_ipu)}"),
            ]
        ),
    ]
    if stages == 1:
        blocks.append(Text("The model lies on one IPU: there is no pipeline."))
    elif plan.job.accumulation < 2 * stages - 1:
        blocks.append(Text(f"{plan.job.accumulation} micro-batches cannot fill {stages} stages: no pipeline.", "note"))
    else:
        drawn, schedule = pipeline_stages(plan.job, workload)
        caption = (
            f"One weight update, drawn with {schedule.num_micro_batches} of {plan.job.accumulation} micro-batches; a box is "
            "as long as its share of the model's FLOPs."
        )
        blocks.append(Drawing(stage_timeline(drawn, schedule), caption, "wide"))
    blocks.append(Preformatted(plan_report.memory_bars(plan)))
    blocks.append(Folded("Terms of the prediction", [Preformatted(plan_report.explain(plan))]))
    return blocks


def pipeline_stages(job: Job, workload: Workload) -> Tuple[List[StageCost], Schedule]:
    """The stages of a job with their FLOPs, and the shortest weight update that fills its pipeline."""
    stages: List[StageCost] = []
    for part, ipu in job.placements(workload):
        if not stages or stages[-1].ipu_id != ipu:
            stages.append(StageCost(len(stages), ipu))
        stages[-1].blocks.append(part.name)
        stages[-1].forward_flops += part.flops
    count = min(job.accumulation, 2 * len(stages) - 1)
    return stages, pipelined_training(len(stages), count, job.recompute)


def _plan(run: Run, config: IPUConfig, workload_of: Sequence[Any]) -> Tuple[Plan, Workload, str]:
    from ipu_trainer.planner.command import model_config

    training = run.record["settings"]["training"]
    workload = measure(model_config(str(run.folder)), *workload_of)
    optimizer = "sgd" if "sgd" in str(training["optim"]) else "adamw"
    job = Job.from_config(config, workload, training["per_device_train_batch_size"], optimizer)
    system = next((s for s in SYSTEMS.values() if s.num_ipus >= job.num_ipus), SYSTEMS["pod256"])
    memory = predict_memory(workload, job, sram_bytes=system.ipu.sram_bytes)
    return Plan(job, memory, predict_time(workload, job, system.ipu)), workload, system.name


def _version(record: Mapping[str, Any]) -> str:
    return str(record["versions"].get("ipu_trainer", ""))
