"""Checkpoints that an interrupted run may go on from: which one is whole, and digests that tell damage.

write_digests() adds digests.json to a checkpoint that is written: size and CRC-32 of each file. It tells damage by accident, at
several gigabytes a second; it proves nothing about who wrote a file. A checkpoint without it (of an earlier release, or whose run
was killed at that moment) is held against what its formats say: JSON, the length in a safetensors header, the CRC-32 in the zip
archives of torch.save.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from transformers import TrainerCallback

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.stored_weights import WEIGHTS, tensors_of

DIGESTS_FILE = "digests.json"
_STATE_FILE = "trainer_state.json"
_CHUNK_BYTES = 1 << 20
_STATE = {
    "global_step": int,
    "epoch?": (float, None),
    "max_steps?": int,
    "num_train_epochs?": float,
    "log_history?": [{str: object}],
    "best_metric?": (float, None),
    "best_model_checkpoint?": (str, None),
}

PathLike = Union[str, "os.PathLike[str]"]


class Found(NamedTuple):
    """A checkpoint to go on from, None for none, and a line for each newer one that was passed over."""

    path: Optional[str]
    passed_over: Tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Steps that the checkpoint has behind it."""
        return 0 if self.path is None else int(read_state(self.path)["global_step"])


def last_complete_checkpoint(output_dir: PathLike) -> Optional[str]:
    """The newest `checkpoint-N` folder that is whole, or None."""
    return find_checkpoint(output_dir).path


def find_checkpoint(output_dir: PathLike, to_resume: bool = False) -> Found:
    """The newest `checkpoint-N` folder that is whole; those that a kill cut short, or that are damaged, are passed over.

    to_resume: so is one that ends its training inside of an epoch, from which Trainer would train one step too many.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    passed_over: List[str] = []
    for path in sorted(found, key=_number, reverse=True):
        problem = why_not_whole(path) or (_why_not_resumed(path) if to_resume else None)
        if problem is None:
            return Found(str(path), tuple(passed_over))
        passed_over.append(f"{path.name}: {problem}")
    return Found(None, tuple(passed_over))


def read_state(checkpoint: PathLike) -> Dict[str, Any]:
    """trainer_state.json, which Trainer writes with NaN where a loss was none. Raises UserError for a damaged one."""
    state: Dict[str, Any] = read_json(
        Path(checkpoint) / _STATE_FILE, _STATE, "Resume from another checkpoint.", not_finite=True
    )
    return state


def why_not_whole(checkpoint: PathLike) -> Optional[str]:
    """What is missing or damaged in a checkpoint, of which a run cannot go on; None where it is whole. Reads all of its files."""
    path = Path(checkpoint)
    try:
        read_state(path)
        digests = read_json(path / DIGESTS_FILE) if (path / DIGESTS_FILE).exists() else None
        if digests is not None:
            problem = digests_problem(path, digests)
            if problem is not None:
                return problem
        states = [path / "optimizer.pt", path / "scheduler.pt", *sorted(path.glob("rng_state*.pth"))]
        if len(states) < 3:
            return "no rng_state.pth"
        if not any((path / name).is_file() for name in WEIGHTS):
            return "no weights"
        known = () if digests is None else digests["files"]
        # All files that hold tensors, also those of shards and of other processes.
        files = {*states, *path.glob("*.safetensors"), *path.glob("pytorch_model*.bin"), *path.glob("*.pt")}
        problems = (_damage(file) for file in sorted(files) if file.name not in known)
        return next((problem for problem in problems if problem is not None), None)
    except UserError as error:
        return str(error).rstrip(".")
    except (OSError, RecursionError) as error:
        return f"{getattr(error, 'filename', None) or path}: {getattr(error, 'strerror', None) or error}"


def complete_checkpoints(found: Found) -> None:
    """Do what a killed run left undone: the digests of the checkpoint found, the rest of an older one that was being removed."""
    if found.path is None:
        return
    newest = Path(found.path)
    if not (newest / DIGESTS_FILE).exists():
        write_digests(newest)
    for path in newest.parent.glob("checkpoint-*"):
        is_older = re.fullmatch(r"checkpoint-\d+", path.name) and _number(path) < _number(newest)
        if is_older and not path.is_symlink() and not _has_all_parts(path):
            shutil.rmtree(path)


def write_digests(checkpoint: PathLike) -> None:
    """Write digests.json of the files that this process wrote: those beside it but the random states of other processes."""
    path = Path(checkpoint)
    files = sorted(
        file
        for file in path.iterdir()
        if file.is_file()
        and file.name != DIGESTS_FILE
        and not file.name.endswith(".tmp")
        and not re.fullmatch(r"rng_state_[1-9]\d*\.pth", file.name)
    )
    write_json(path / DIGESTS_FILE, {"format": 1, "files": {file.name: _digest(file) for file in files}})


class WritesDigests(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Adds digests to each checkpoint of a training, once it is written; leads a moved run to its best checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed state names the best checkpoint by the path that the run had then; 5.x forgets one that is not there."""
        step = getattr(state, "best_global_step", None)
        best = state.best_model_checkpoint or (f"checkpoint-{step}" if step else None)
        here = Path(args.output_dir) / Path(best).name if best else None
        if best and here and here.is_dir() and (not Path(best).is_dir() or here.samefile(best)):
            state.best_model_checkpoint = str(here)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and (folder / _STATE_FILE).is_file():
            write_digests(folder)


def _why_not_resumed(checkpoint: Path) -> Optional[str]:
    state = read_state(checkpoint)
    epoch, step, last = (float(state.get(name) or 0) for name in ("epoch", "global_step", "max_steps"))
    is_last = 0 < last <= step and abs(epoch - round(epoch)) > 1e-9
    return "it ends the training inside of an epoch, and Trainer would go on by a step" if is_last else None


def _has_all_parts(checkpoint: Path) -> bool:
    parts = ([_STATE_FILE], ["optimizer.pt"], ["scheduler.pt"], WEIGHTS)
    return all(any((checkpoint / name).is_file() for name in names) for names in parts)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _digest(file: Path) -> Dict[str, Any]:
    crc = 0
    with file.open("rb") as opened:
        while True:
            chunk = opened.read(_CHUNK_BYTES)
            if not chunk:
                return {"bytes": opened.tell(), "crc32": f"{crc:08x}"}
            crc = zlib.crc32(chunk, crc)


def digests_problem(path: Path, digests: Any) -> Optional[str]:
    """The first file beside digests.json that is not what was written."""
    if not isinstance(digests, dict) or digests.get("format") != 1 or not isinstance(digests.get("files"), dict):
        return f"{DIGESTS_FILE} is not of this release"
    for name, digest in digests["files"].items():
        if Path(name).name != name or not (path / name).is_file():
            return f"{name} is missing"
        if _digest(path / name) != digest:
            return f"{name} is not what was written"
    return None


def archive_problem(file: Path) -> str:
    """What is wrong with a file of torch.save, a zip archive whose directory comes last and whose records have checksums; or ""."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        return f"it is no whole archive of torch.save ({' '.join(str(error).split())[:200]})"
    return f"its record {broken} has another checksum" if broken else ""


def _damage(file: Path) -> Optional[str]:
    """What a file without a digest says of its own damage. Raises UserError for damaged tensors."""
    if file.suffix == ".safetensors":
        tensors_of(file)
        return None
    problem = archive_problem(file)
    return f"{file.name} is damaged: {problem}" if problem else None
