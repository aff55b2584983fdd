"""A finished run read back from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE, read_history, read_run


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


def load_run(folder: Path) -> Run:
    """Raises UserError if the folder holds no finished run or its files are damaged."""
    record = read_run(folder)
    return Run(Path(folder), record, read_json(Path(folder) / METRICS_FILE), read_history(folder))


def task_of(folder: Path) -> str:
    """The task of a run, or of the run that an evaluation belongs to. Raises UserError for any other folder."""
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


def flat(value: Any, prefix: str = "") -> Dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: Dict[str, Any] = {}
    for name, item in value.items():
        result.update(flat(item, f"{prefix}.{name}" if prefix else str(name)))
    return result
