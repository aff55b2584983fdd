"""run.json: what ran, written beside its results; whether an interrupted run may be resumed; a finished run read back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ipu_trainer.atomic import remove_leftovers, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.state.checkpoints import last_complete_checkpoint, read_state

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.json"
# status in run.json: weights are not final; weights and history.json are written; only the report may be missing; complete.
RUNNING, TRAINED, EVALUATED, FINISHED = "running", "trained", "evaluated", "finished"
_AGAIN = "Train the run again into another folder, or take the file from a copy."
# What every task's run.json holds; releases and tasks add more.
_RECORD = {
    "status": str,
    "task": str,
    "model?": str,
    "seed?": int,
    "settings?": {"recipe?": {str: object}, "training?": {str: object}, "ipu_config?": {str: object}},
    "data?": {str: object},
    "backend?": {"name": str, "reason?": str},
    "precision?": {"name": str, "reason": str},
    "versions?": {str: str},
    "num_parameters?": int,
    "batch_table?": str,
}
_LOGGED = {"step?": int, "epoch?": float, "train_runtime?": float, "train_samples_per_second?": float}
_HISTORY = [{**_LOGGED}]
# Settings that may differ when a run is resumed: where its logs go, and what is written at the end.
_MAY_DIFFER = ("report", "report_to", "run_name", "disable_tqdm")


def read_run(run_dir: Path) -> Dict[str, Any]:
    """run.json of a run with all its results. Raises UserError if there is none."""
    path = Path(run_dir) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} holds no run ({RUN_FILE} is missing). Make one: ipu-trainer train ...")
    record: Dict[str, Any] = read_json(path, _RECORD, _AGAIN)
    if record["status"] not in (EVALUATED, FINISHED):
        raise UserError(f"the run in {run_dir} is not finished. Give the same train command again: it resumes.")
    return record


def write_history(run_dir: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Trainer's log history as history.json; a checkpoint has it up to its own step only."""
    write_json(run_dir / HISTORY_FILE, history)


def read_history(run_dir: Path) -> List[Dict[str, Any]]:
    """history.json; without it what the last checkpoint has; else nothing."""
    path = Path(run_dir) / HISTORY_FILE
    if path.is_file():
        return list(read_json(path, _HISTORY, "Remove it: the last checkpoint has most of it."))
    checkpoint = last_complete_checkpoint(run_dir)
    return [] if checkpoint is None else list(read_state(checkpoint).get("log_history", []))


def run_settings(task: str, recipe: Any, args: IPUTrainingArguments, ipu_config: Any, **more: Any) -> Dict[str, Any]:
    """What run.json says of a run before it starts; recipe is the dataclass of the task's own flags.

    Arguments that are secret, or that differ between a run and its resumption, are left out.
    """
    left_out = ("resume_from_checkpoint", "logging_dir", "local_rank", "hub_token", "push_to_hub_token")
    training = {name: value for name, value in args.to_dict().items() if name not in left_out}
    settings = {"recipe": dataclasses.asdict(recipe), "training": training, "ipu_config": ipu_config.to_dict()}
    return {"task": task, "model": recipe.model, "seed": args.seed, "settings": settings, **more}


def resumable_checkpoint(run_dir: Path, args: IPUTrainingArguments, settings: Dict[str, Any]) -> Optional[str]:
    """The checkpoint to resume from. Raises UserError if the folder holds a finished or a different run."""
    path = run_dir / RUN_FILE
    named = _named_checkpoint(args)
    if named is not None:
        if not (Path(named) / "trainer_state.json").is_file():
            raise UserError(
                f"--resume_from_checkpoint {named} is no checkpoint of a run: it has no trainer_state.json."
            )
        read_state(named)
        return named
    if not path.is_file():
        return None
    record = read_json(path, _RECORD, "Give another --output.")
    if record["status"] == FINISHED:
        raise UserError(f"{run_dir} holds a finished run. Give another --output, or remove it.")
    # Flags of a task became training arguments between releases: the groups are compared as one.
    then, now = _flags(record), _flags(json.loads(json.dumps(settings, default=str)))
    changed = sorted(name for name in {*then, *now} - set(_MAY_DIFFER) if then.get(name) != now.get(name))
    if record.get("data", {}).get("fingerprint") != settings["data"]["fingerprint"]:
        changed.append("data")
    if changed:
        raise UserError(
            f"{run_dir} holds an interrupted run with other settings ({', '.join(changed)}). "
            "Give the same command to resume it, or another --output."
        )
    return last_complete_checkpoint(run_dir)


def _named_checkpoint(args: IPUTrainingArguments) -> Optional[str]:
    named = args.resume_from_checkpoint
    return str(named) if named and named not in ("True", "true") else None


def _flags(record: Mapping[str, Any]) -> Dict[str, Any]:
    settings = record.get("settings", {})
    return {**settings.get("training", {}), **settings.get("recipe", {})}


def begin_run(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, unless the run is trained already; remove files that killed runs left half written."""
    remove_leftovers(run_dir)
    if record["status"] == RUNNING:
        write_json(run_dir / RUN_FILE, record)


def trained_record(run_dir: Path, args: IPUTrainingArguments) -> Optional[Dict[str, Any]]:
    """run.json of a run that is trained, and whose results are missing; None for any other."""
    path = run_dir / RUN_FILE
    if _named_checkpoint(args) is not None:
        return None
    record: Dict[str, Any] = read_json(path, _RECORD, "Give another --output.") if path.is_file() else {}
    return record if record.get("status") in (TRAINED, EVALUATED) else None


def train_or_restore(trainer: Any, record: Mapping[str, Any], checkpoint: Optional[str]) -> None:
    """Train, save the weights and mark the run as trained; where it is, restore the trainer's log of that training."""
    run_dir = Path(trainer.args.output_dir)
    if record["status"] == RUNNING:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.is_world_process_zero():
            write_history(run_dir, trainer.state.log_history)
            write_json(run_dir / RUN_FILE, {**record, "status": TRAINED})
        return
    history = read_history(run_dir)
    last = max((place for place, entry in enumerate(history) if "train_runtime" in entry), default=len(history) - 1)
    trainer.state.log_history = history[: last + 1]
    trainer.state.global_step, trainer.state.epoch = history[last]["step"], history[last]["epoch"]


def finish_run(
    run_dir: Path, record: Mapping[str, Any], write_report: Optional[Callable[[Path], Any]] = None, **results: Any
) -> None:
    """Write the report, which reads the run's other files, and mark the run as finished. results: more for run.json."""
    write_json(run_dir / RUN_FILE, {**record, **results, "status": EVALUATED})
    if write_report is not None:
        write_report(run_dir)
    write_json(run_dir / RUN_FILE, {**record, **results, "status": FINISHED})


def versions() -> Dict[str, str]:
    names = ("ipu_trainer", "torch", "transformers", "accelerate", "datasets", "numpy")
    found = {name: str(importlib.import_module(name).__version__) for name in names}
    return {**found, "python": platform.python_version(), "platform": sys.platform}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, run.json, metrics.json and Trainer's log history (empty where none was saved)."""

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

    def predict(self, images: Any, **options: Any) -> Any:
        """What the run's model says of new images; its task defines images, options and result.

        chest-xray: paths, Pillow images or uint8 arrays to tasks.chest_xray.predict.ImagePredictions; option progress. The
        model is loaded by the first call and kept. Raises UserError if the task predicts nothing.
        """
        from ipu_trainer.tasks.task import load_task

        if self._predictor is None:
            task = load_task(self.task)
            if task.predictor is None:
                raise UserError(f"{self.folder} is a run of {self.task}, which has no predict.")
            object.__setattr__(self, "_predictor", task.predictor(self))
        return self._predictor(images, **options)

    _predictor: Any = field(default=None, init=False, repr=False, compare=False)


def load_run(folder: Path) -> Run:
    """Raises UserError if the folder holds no finished run or its files are damaged."""
    record = read_run(folder)
    return Run(Path(folder), record, read_results(Path(folder) / METRICS_FILE), read_history(folder))


def task_of(folder: Path) -> str:
    """The task of a run, or of the run that an evaluation belongs to. Raises UserError for any other folder."""
    folder = Path(folder)
    if (folder / RUN_FILE).is_file() or not (folder / METRICS_FILE).is_file():
        return str(read_run(folder)["task"])
    return str(read_run(Path(str(read_results(folder / METRICS_FILE).get("run", folder))))["task"])


def read_results(path: Path) -> Dict[str, Any]:
    """The JSON object in path. Raises UserError where there is none."""
    results: Dict[str, Any] = read_json(path, {}, "It is written at the end of a run: evaluate the run again.")
    return results


def flat(value: Any, prefix: str = "") -> Dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: Dict[str, Any] = {}
    for name, item in value.items():
        result.update(flat(item, f"{prefix}.{name}" if prefix else str(name)))
    return result
