"""A checkpoint: the weights, the states of optimizer, schedule and random generators, and how far the training was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import numpy as np
import torch

from ipu_trainer.tasks.checking.file_checks import MISSING, FileGroup, json_problem, unreadable_json
from ipu_trainer.tasks.checking.weight_checks import check_weights, load_state
from ipu_trainer.training.state.checkpoints import DIGESTS_FILE, archive_problem, digests_problem

_STATE = "trainer_state.json"
_ELEMENTS_AT_ONCE = 1 << 22


def checkpoints(run_dir: Path) -> List[Path]:
    """Folders of checkpoints, the newest first."""
    found = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(path.name.partition("-")[2]))


def check_checkpoint(folder: Path) -> List[FileGroup]:
    groups = [*check_weights(folder), _progress(folder)]
    groups += [_state(folder / name) for name in ("optimizer.pt", "scheduler.pt")]
    generators = sorted(path.name for path in folder.glob("rng_state*.pth")) or ["rng_state.pth"]
    groups += [_state(folder / name) for name in generators]
    if (folder / "scaler.pt").is_file():
        groups.append(_state(folder / "scaler.pt"))
    known = {group.files for group in groups}
    others = unreadable_json(folder, [*known, DIGESTS_FILE])
    groups.append(FileGroup("other JSON files", "readable", "; ".join(others)))
    return [*groups, *digest_group(folder)]


def digest_group(folder: Path) -> List[FileGroup]:
    """What digests.json says of the files beside it; nothing where there is none."""
    if not (folder / DIGESTS_FILE).exists():
        return []
    values, problem = json_problem(folder / DIGESTS_FILE, {"files": {}})
    problem = problem or digests_problem(folder, values) or ""
    return [FileGroup(DIGESTS_FILE, f"{len(values.get('files', ()))} files are what was written", problem)]


def _progress(folder: Path) -> FileGroup:
    values, problem = json_problem(folder / _STATE, {"global_step": int, "log_history": [{}]})
    named = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name)
    if not problem and named and int(named[1]) != values["global_step"]:
        problem = f"global_step is {values['global_step']} in {folder.name}"
    return FileGroup(_STATE, "" if problem else f"step {values['global_step']:,}", problem)


def _state(path: Path) -> FileGroup:
    problem = archive_problem(path) if path.is_file() else MISSING
    if problem:
        return FileGroup(path.name, problem=problem)
    try:
        with _numpy_arrays():
            loaded = load_state(path)
    except RuntimeError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error):  # its checksums are right
            return FileGroup(path.name, "checksums are right; not loaded, as this torch would have to run its code")
        return FileGroup(path.name, problem=f"it cannot be loaded ({error})")
    if not isinstance(loaded, dict) or not loaded:
        return FileGroup(path.name, problem=f"it holds no state, but a {type(loaded).__name__}")
    odd = next((name for name, tensor in _tensors(loaded, "") if not _is_finite(tensor)), None)
    return FileGroup(path.name, "loads", "" if odd is None else f"{odd} holds values that are not finite")


def _numpy_arrays() -> Any:
    """Context in which torch.load may make numpy arrays, as numpy's generator state is one; nothing before torch 2.5."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:
        return torch.no_grad()
    make: Any = np.zeros(1).__reduce__()[0]
    return allow([make, np.ndarray, np.dtype, type(np.dtype(np.uint32))])


def _tensors(value: Any, name: str) -> Iterator[Tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(part.float()).all()) for part in torch.split(tensor.reshape(-1), _ELEMENTS_AT_ONCE))
