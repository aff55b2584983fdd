"""Writing files so that a reader, or a run that resumes, sees the old content or the new one and never half of it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence, Tuple, Union

PathLike = Union[str, "os.PathLike[str]"]
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as _locked_temporary names them


@contextlib.contextmanager
def atomic_path(target: PathLike) -> Iterator[Path]:
    """Yield a temporary path in target's folder; on success it replaces target, on an error it is removed.

    The file is locked until then, so that remove_leftovers() of another process knows that its writer lives.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _locked_temporary(target)
    try:
        yield temporary
        temporary.chmod(_mode())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.close(handle)


def share_weights(folder: PathLike) -> None:
    """Give the weights in folder the mode of every new file: safetensors makes them for their owner alone (0600)."""
    for path in Path(folder).glob("*.safetensors"):
        path.chmod(_mode())


def _mode() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def remove_leftovers(folder: PathLike, below: bool = True) -> None:
    """Remove what killed processes left of atomic_path in folder, and below it; files that a living process writes stay.

    A process's lock ends with it, however it ends. Where a file system has no locks nothing is removed.
    """
    folder = Path(folder)
    for path in folder.rglob(".*.tmp") if below else folder.glob(".*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _locked_temporary(target: Path) -> Tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)  # between its making and its lock another process took it for a leftover


def write_text(target: PathLike, text: str) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: PathLike, value: Any) -> None:
    """Write value as indented JSON; NaN becomes null, so that every JSON parser reads the file."""
    write_text(target, json.dumps(_finite(value), indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_csv(target: PathLike, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the header first, as CSV."""
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(rows)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return _finite(value.item())
    return value
