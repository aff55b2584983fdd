"""A run of any task: its record, model, results and checkpoints. What a task adds is known by its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.tasks.checking.checkpoint_check import check_checkpoint, checkpoints, digest_group
from ipu_trainer.tasks.checking.file_checks import (
    MISSING,
    FileGroup,
    image_problem,
    json_problem,
    unreadable_json,
)
from ipu_trainer.tasks.checking.weight_checks import check_weights
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE
from ipu_trainer.tasks.run_record import FINISHED, HISTORY_FILE, METRICS_FILE, RUN_FILE, RUNNING
from ipu_trainer.training.state.checkpoints import archive_problem

_RECORD = {
    "status": str, "task": str, "model": str, "seed": int, "settings": {}, "data": {}, "backend": {}, "versions": {},
}  # fmt: skip
_CHEST_XRAY_RECORD = {"findings": [str], "thresholds": {}, "evaluated_split": str}


class CheckedRun(NamedTuple):
    """The lines of the table, and what the user should do; "" where the run is whole and finished."""

    groups: List[FileGroup]
    next_move: str


def check_run(folder: Path) -> CheckedRun:
    record, problem = json_problem(folder / RUN_FILE, _RECORD)
    status = record.get("status")
    if not problem and status != RUNNING and "findings" in record:
        problem = json_problem(folder / RUN_FILE, _CHEST_XRAY_RECORD if status == FINISHED else {})[1]
    groups = [FileGroup(RUN_FILE, f"{record.get('task')}, {status}", problem)]
    states = {path: check_checkpoint(path) for path in checkpoints(folder)}
    if problem:
        return CheckedRun(groups, f"Restore {RUN_FILE} from a copy, or train again into another folder.")
    if status != RUNNING:
        groups += check_weights(folder)
    if status == FINISHED:
        groups += _results(folder, record)
    groups += _corpus(folder)
    groups += [_summary(path, found) for path, found in states.items()]
    groups += digest_group(folder)
    others = unreadable_json(folder, [RUN_FILE, "config.json", METRICS_FILE, HISTORY_FILE, "digests.json"])
    groups.append(FileGroup("other JSON files", "readable", "; ".join(others)))
    return CheckedRun(groups, _next_move(folder, str(status), groups))


def _results(folder: Path, record: Dict[str, Any]) -> List[FileGroup]:
    metrics, problem = json_problem(folder / METRICS_FILE, {"per_finding": {}} if "findings" in record else {})
    groups = [FileGroup(METRICS_FILE, f"{len(metrics)} values", problem)]
    groups.append(_history(folder / HISTORY_FILE))
    if "findings" in record:
        groups.append(_predictions(folder, metrics))
        groups.append(
            FileGroup("preprocessor_config.json", "readable", json_problem(folder / "preprocessor_config.json", {})[1])
        )
    if (folder / "training_args.bin").is_file():
        groups.append(
            FileGroup("training_args.bin", "checksums are right", archive_problem(folder / "training_args.bin"))
        )
    images = sorted((folder / "plots").glob("*.png"))
    broken = "; ".join(filter(None, map(image_problem, images)))
    groups.append(FileGroup("plots/", f"{len(images)} images", broken if images else MISSING))
    if record["settings"].get("recipe", {}).get("report", True):
        groups.append(_page(folder / REPORT_FILE))
    return groups


def _history(path: Path) -> FileGroup:
    """The log history, a list of JSON objects."""
    if not path.is_file():
        return FileGroup(path.name, problem=MISSING)
    try:
        return FileGroup(path.name, f"{len(read_json(path, [{}], not_finite=True))} entries")
    except UserError as error:
        return FileGroup(path.name, problem=str(error)[:200])


def _predictions(folder: Path, metrics: Dict[str, Any]) -> FileGroup:
    from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import predictions_digest, read_predictions

    path = folder / "predictions.csv"
    if not path.is_file():
        return FileGroup(path.name, problem=MISSING)
    try:
        predictions = read_predictions(path)
    except UserError as error:
        return FileGroup(path.name, problem=str(error))
    problem, wanted = "", metrics.get("num_images")
    digest = dict(metrics.get("digests") or {}).get(path.name)
    if digest not in (None, predictions_digest(path.read_bytes())):
        problem = f"it is not the file of {METRICS_FILE}: its digest is another one"
    elif wanted is not None and wanted != len(predictions):
        problem = f"it has {len(predictions):,} images, and {METRICS_FILE} says {wanted:,}"
    elif not np.isfinite(predictions.probability).all():
        problem = "it holds a probability that is no number"
    return FileGroup(path.name, f"{len(predictions):,} images", problem)


def _page(path: Path) -> FileGroup:
    if not path.is_file():
        return FileGroup(path.name, problem=MISSING)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        whole = file.read().rstrip().endswith(b"</html>")
    return FileGroup(path.name, f"{path.stat().st_size:,} bytes", "" if whole else "its end is missing")


def _corpus(folder: Path) -> List[FileGroup]:
    """Token streams of a language model."""
    if not (folder / "data" / "corpus.json").exists():
        return []
    about, problem = json_problem(folder / "data" / "corpus.json", {"train": {}, "validation": {}, "fingerprint": str})
    for split in () if problem else ("train", "validation"):
        try:
            stream = np.load(folder / "data" / f"{split}.npy", "r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            problem = f"{split}.npy: {' '.join(str(error).split())}"
            break
        if len(stream) != about[split].get("tokens"):
            problem = f"{split}.npy has {len(stream):,} tokens, and corpus.json says {about[split].get('tokens')}"
            break
    return [FileGroup("data/", "corpus", problem)]


def _summary(path: Path, found: List[FileGroup]) -> FileGroup:
    bad = [f"{group.files}: {group.problem}" for group in found if group.problem]
    return FileGroup(f"{path.name}/", f"{len(found)} file groups", "; ".join(bad))


def _next_move(folder: Path, status: str, groups: List[FileGroup]) -> str:
    damaged = [group.files for group in groups if group.problem]
    whole = next((group.files for group in groups if group.files.startswith("checkpoint-") and not group.problem), "")
    if status != FINISHED:
        start = {RUNNING: f"from {whole}" if whole else "from the beginning"}.get(status, "without training again")
        return f"It is not finished. Give the same train command again: it goes on {start}."
    if not damaged:
        return ""
    if damaged == [REPORT_FILE]:
        return f"Write the report again: ipu-trainer report {folder}"
    kept = f" {whole} is whole and holds weights." if whole and "model.safetensors" in damaged else ""
    if all(name.startswith("checkpoint-") for name in damaged):
        return f"The run's own model is whole, and {', '.join(damaged)} is not needed any more: it may be removed."
    return f"Restore {', '.join(damaged)} from a copy, or train again into another folder.{kept}"
