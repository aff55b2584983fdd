"""Runs any task: header, training, evaluation, report. A task supplies data, model, trainer and metrics as a TaskRun.

    train    resume or restore -> header -> run.json -> train -> evaluate -> results, curves, model card, report -> run.json
    search   a trainer that makes a model for each trial

The commands are `ipu-trainer train TASK` and `ipu-trainer search TASK`.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

import transformers

from ipu_trainer.atomic import write_text
from ipu_trainer.errors import user_input
from ipu_trainer.tasks.output_guard import RUN, check_output
from ipu_trainer.tasks.recipe.early_checks import check_metric, check_optimizer, feasibility_check, fit_warning, warn
from ipu_trainer.tasks.reporting.drawing import plot_training
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, report_or_reason
from ipu_trainer.tasks.run_record import (
    RUNNING,
    begin_run,
    finish_run,
    resumable_checkpoint,
    train_or_restore,
    trained_record,
    versions,
    write_history,
)
from ipu_trainer.tasks.task import SearchTask, Task
from ipu_trainer.training.acceleration.choices import describe_acceleration, used_precision
from ipu_trainer.training.loss.divergence import stop_when_diverged
from ipu_trainer.training.monitor import experiment_tracker_hint, messages_beside_progress, watch
from ipu_trainer.training.state.checkpoints import Found, WritesDigests, complete_checkpoints

Rows = List[Tuple[str, str]]  # of the header: (label, text)


class Results(NamedTuple):
    """What an evaluation at the end found: metrics, a function that writes the task's files, and more for run.json."""

    metrics: Dict[str, Any]
    write: Callable[[Path], None]
    record: Mapping[str, Any] = {}


class TaskRun(Protocol):
    """One run of a task, before it has a model: flags are checked and data are read.

    settings: what run.json says of it (run_record.run_settings). metrics: names that compute_metrics returns. objective: what
    a search optimizes, and "minimize" or "maximize". tracked: the metric of the curves. sample_shape: tokens of a sample (and
    of its target), empty for images. write_report: None where no report is wanted.
    """

    args: Any
    settings: Dict[str, Any]
    metrics: Sequence[str]
    objective: Tuple[str, str]
    tracked: Any
    sample_shape: Sequence[int]
    write_report: Optional[Callable[[Path], Path]]

    def describe(self) -> Rows:
        """Data, loss and baseline, for the header."""

    def new_model(self) -> Any:
        """The model before its training; the caller has set the seed."""

    def trained_model(self, run_dir: Path) -> Any:
        """The model of a run that was trained, and whose results are missing."""

    def trainer(self, **model: Any) -> Any:
        """An IPUTrainer. model: model= or model_init=."""

    def predict(self, trainer: Any) -> Any:
        """The forward passes of the evaluation at the end, on every process."""

    def results(self, trainer: Any, predicted: Any) -> Results:
        """What predict() gave as results, on the first process alone."""

    def table(self, metrics: Mapping[str, Any]) -> str:
        """The metrics, as a person reads them."""

    def model_card(self, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        """README.md."""


def recipe_task(prepare: Callable[[Sequence[str]], TaskRun], **more: Any) -> Task:
    """A Task whose training and search are this recipe. prepare: flags to a TaskRun; more: for Task."""
    return Task(lambda flags: run(prepare(flags)), lambda flags: search_task(prepare(flags)), **more)


def run(job: TaskRun) -> None:
    """Train, and print the results."""
    metrics = train(job)
    if metrics:
        output = job.args.output_dir
        print(f"\n{job.table(metrics)}\n\nmodel, metrics and plots: {output}")
        if job.write_report is not None and (Path(output) / REPORT_FILE).is_file():
            print(f"to read: {Path(output) / REPORT_FILE}")


def train(job: TaskRun) -> Dict[str, Any]:
    """The recipe; returns what metrics.json holds, or nothing on other processes than the first.

    Raises UserError, before training, for input that cannot work.
    """
    args, run_dir = job.args, Path(job.args.output_dir)
    check_output(run_dir, RUN)
    found = resumable_checkpoint(run_dir, args, job.settings)
    checkpoint = found.path
    trained = trained_record(run_dir, args)
    model = seeded_model(job) if trained is None else job.trained_model(run_dir)
    trainer = _checked_trainer(job, model=model)
    watch(trainer, tokens_per_sample=sum(job.sample_shape))
    stop_when_diverged(trainer)
    trainer.add_callback(WritesDigests())
    # How it was trained stays; how it is evaluated, and where its data lie now, may be another.
    record = {**trained, **job.settings} if trained else _new_record(job, trainer, checkpoint)
    if trainer.is_world_process_zero():
        print(_header(job, trainer, record))
        if trained or checkpoint or found.passed_over:
            print(_resuming(found, trained is not None))
        begin_run(run_dir, record)
        if found.path is not None and Path(found.path).parent.resolve() == run_dir.resolve():
            complete_checkpoints(found)
        if args.ipu_config:
            warn(fit_warning(model, trainer.ipu_config, args, *job.sample_shape))

    with messages_beside_progress(trainer):
        train_or_restore(trainer, record, checkpoint)
    predicted = job.predict(trainer)
    if not trainer.is_world_process_zero():
        return {}
    results = job.results(trainer, predicted)
    results.write(run_dir)
    history, tracked = trainer.state.log_history, job.tracked
    write_history(run_dir, history)
    plot_training(run_dir / "plots" / "training.png", history, tracked.key, tracked.label, tracked.logarithmic)
    write_text(run_dir / "README.md", job.model_card({**record, **results.record}, results.metrics))
    report = functools.partial(report_or_reason, job.write_report) if job.write_report else None
    finish_run(run_dir, record, report, **results.record)
    return results.metrics


def _resuming(found: Found, is_trained: bool) -> str:
    """What the run goes on from, and a line for each newer checkpoint that it cannot go on from."""
    if is_trained:
        return "resuming from the trained weights"
    lines = [f"passed over: {line}" for line in found.passed_over]
    if found.path is None:
        return "\n".join([*lines, "no checkpoint to go on from: training begins at step 0"])
    return "\n".join([*lines, f"resuming from {found.path}, at step {found.step}"])


def search_task(job: TaskRun) -> SearchTask:
    """What a search varies: the job's trainer, which makes a model for each trial."""
    trainer = _checked_trainer(job, model_init=lambda: seeded_model(job))
    check = feasibility_check(trainer, *job.sample_shape)
    return SearchTask(trainer, *job.objective, _lines(job.describe()), job.settings, check, job.metrics)


def seeded_model(job: TaskRun) -> Any:
    """The job's model, drawn by its seed."""
    transformers.set_seed(job.args.seed)
    model = job.new_model()
    transformers.set_seed(job.args.seed)  # a trial then draws as a run, whose trainer begins with this seed
    return model


def _checked_trainer(job: TaskRun, **model: Any) -> Any:
    with user_input():  # what stock Trainer refuses are arguments
        trainer = job.trainer(**model)
    check_metric("metric_for_best_model", job.args.metric_for_best_model, job.metrics)
    check_optimizer(trainer)
    return trainer


def _new_record(job: TaskRun, trainer: Any, checkpoint: Optional[str]) -> Dict[str, Any]:
    backend = trainer.backend
    return {
        "status": RUNNING,
        **job.settings,
        "num_parameters": trainer.model.num_parameters(),
        "backend": {**backend.describe(), "torch_device": str(job.args.device)},
        "precision": dataclasses.asdict(used_precision(job.args, backend.has_executors)),
        "versions": versions(),
        "execution": trainer.execution.describe(checkpoint),
        "batch_table": trainer.batch_table(getattr(trainer, "epoch_plan", None), checkpoint),
    }


def _header(job: TaskRun, trainer: Any, record: Mapping[str, Any]) -> str:
    args, backend, precision = job.args, trainer.backend, record["precision"]
    where = backend.device if backend.has_executors else args.device
    rows = [
        *job.describe(),
        ("model", f"{record['model']}, {trainer.model.num_parameters():,} parameters"),
        ("batches", record["batch_table"]),
        ("backend", f"{backend.name} on {where} ({backend.reason})"),
        ("precision", f"{precision['name']} ({precision['reason']})"),
        ("acceleration", describe_acceleration(args, backend.has_executors, trainer.model)),
        ("tracking", experiment_tracker_hint(args.report_to, args.output_dir)),
    ]
    return _lines(rows)


def _lines(rows: Rows) -> str:
    return "\n".join(f"{label:14}" + text.replace("\n", "\n" + 14 * " ") for label, text in rows)
