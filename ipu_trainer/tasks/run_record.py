"""run.json: what ran, written beside its results; whether an interrupted run may be resumed; a finished run read back."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ipu_trainer.atomic import remove_leftovers, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.state.checkpoints import (
    Found,
    find_checkpoint,
    last_complete_checkpoint,
    read_state,
    why_not_whole,
)

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.json"
# status in run.json: weights are not final; weights and history.json are written; only the report may be missing; complete.
RUNNING, TRAINED, EVALUATED, FINISHED = "running", "trained", "evaluated", "finished"
_AGAIN = "Train the run again into another folder, or take the file from a copy."
# What every task's run.json holds; releases and tasks add more.
_RECORD = {
    "status": str,
    "task?": str,
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
_HISTORY = [{"step?": int, "epoch?": float, "train_runtime?": float, "train_samples_per_second?": float}]
# Settings that no weight depends on, and that may differ when a run is resumed: where it lies, what it logs, how it is evaluated.
_MAY_DIFFER = (
    "output_dir", "logging_dir", "report", "report_to", "run_name", "disable_tqdm", "log_level", "log_level_replica", "project",
    "logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "save_total_limit", "num_bootstrap",
    "prompts", "sample_tokens", "predict_with_generate", "generation_num_beams", "generation_max_length", "prediction_loss_only",
    "label_names", "per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches",
)  # fmt: skip
# When it is evaluated: of no weight either, unless the best checkpoint or the learning rate depends on it.
_EVALUATIONS = ("eval_strategy", "evaluation_strategy", "do_eval", "eval_steps", "eval_delay", "eval_on_start")
# Settings that name files: the content counts, which the run has a fingerprint or a copy of.
_DATA, _IPU_CONFIG = ("data", "corpus", "pairs"), ("ipu_config", "ipu_config_overrides")


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
    known = {
        "task": task,
        "model": recipe.model,
        "model_fingerprint": model_fingerprint(recipe.model),
        "seed": args.seed,
    }
    return {**known, "settings": settings, **more}


def resumable_checkpoint(run_dir: Path, args: IPUTrainingArguments, settings: Dict[str, Any]) -> Found:
    """The checkpoint to resume from.

    Raises UserError if the folder holds a finished or a different run, or if a checkpoint that was named is damaged.
    """
    path = run_dir / RUN_FILE
    named = _named_checkpoint(args)
    if named is not None:
        if not (Path(named) / "trainer_state.json").is_file():
            raise UserError(
                f"--resume_from_checkpoint {named} is no checkpoint of a run: it has no trainer_state.json."
            )
        problem = why_not_whole(named)
        if problem is not None:
            raise UserError(
                f"--resume_from_checkpoint {named} is damaged: {problem}. Name an earlier one, or leave it out."
            )
        return Found(named)
    if not path.is_file():
        return Found(None)
    record = read_json(path, _RECORD, "Give another --output.")
    if record["status"] == FINISHED:
        raise UserError(f"{run_dir} holds a finished run. Give another --output, or remove it.")
    changed = changed_settings(record, json.loads(json.dumps(settings, default=str)))
    if changed:
        raise UserError(
            f"{run_dir} holds an interrupted run with other settings ({', '.join(changed)}). "
            "Give the same command to resume it, or another --output."
        )
    return find_checkpoint(run_dir, to_resume=True)


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> List[str]:
    """Names of settings in two records of a run with which it would not be the same run.

    Data sets, models and IPUConfigs are the same where their content is, whatever their path.
    """
    # Flags of a task became training arguments between releases: the groups are compared as one.
    before, after = _flags(then), _flags(now)
    may_differ = {*_MAY_DIFFER, *(() if _follows_evaluations(before) else _EVALUATIONS)}
    by_content = {*_DATA, *(_IPU_CONFIG if "ipu_config" in then.get("settings", {}) else ()), "model"}
    changed = [
        name
        for name in sorted({*before, *after} - may_differ - by_content)
        if not _is_same(before.get(name), after.get(name))
    ]
    fingerprints = then.get("model_fingerprint"), now.get("model_fingerprint")
    if not _is_same(before.get("model"), after.get("model")) and (None in fingerprints or len({*fingerprints}) > 1):
        changed.append("model")
    if then.get("settings", {}).get("ipu_config") not in (None, now["settings"].get("ipu_config")):
        changed.append("ipu_config")
    if then.get("data", {}).get("fingerprint") != now["data"]["fingerprint"]:
        changed.append("data")
    return changed


def _follows_evaluations(flags: Mapping[str, Any]) -> bool:
    """Whether the weights at the end depend on the evaluations during training."""
    plateau = flags.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    return bool(plateau or flags.get("load_best_model_at_end") or flags.get("save_strategy") == "best")


def _is_same(then: Any, now: Any) -> bool:
    """Whether two values are equal, or two ways to write the path of one file or folder."""
    if then == now or not (isinstance(then, str) and isinstance(now, str)):
        return bool(then == now)
    return bool(then and now) and Path(now).exists() and os.path.realpath(then) == os.path.realpath(now)


def model_fingerprint(model: str) -> Optional[str]:
    """Of the files in a model's folder: their names, lengths and first MiB, which differ from one training to the next.

    None for what is no folder: the Hub's name then says which model it is.
    """
    folder = Path(model)
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    digest = hashlib.sha256()
    for path in files:
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
            with path.open("rb") as opened:
                digest.update(f"{path.name} {path.stat().st_size}\n".encode() + opened.read(1 << 20))
    return digest.hexdigest()[:16] if files else None


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
    run_dir: Path, record: Mapping[str, Any], write_report: Optional[Callable[[Path], bool]] = None, **results: Any
) -> None:
    """Write the report, which reads the run's other files, and mark the run as finished. results: more for run.json.

    write_report returns whether there is one; without it the run is evaluated, and the same command tries again.
    """
    write_json(run_dir / RUN_FILE, {**record, **results, "status": EVALUATED})
    if write_report is not None and not write_report(run_dir):
        return
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
