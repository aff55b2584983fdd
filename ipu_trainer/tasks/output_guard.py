"""The guard of outputs: a command writes into a new or empty folder, or goes on in one that it made. No file is lost to another.

What says whose folder it is:

    run.json, search.json   what a training or a search writes before its work
    .ipu-trainer.json       the marker of every other folder, written by claim() before anything else

Folders of earlier releases have no marker: the file that their command wrote says the same. Contents decide and never paths, so
that symbolic links and other spellings of a path change nothing.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.folders import is_hidden

MARKER = ".ipu-trainer.json"
# What a page of tasks/reporting begins with, whatever its title.
PAGE_HEAD = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
_HEAD_BYTES = 4096
# What a shell or a scheduler writes beside a command's output.
_LOGS = (".log", ".out", ".err")
_MOST_NAMED = 3


@dataclass(frozen=True)
class FolderKind:
    """What a command leaves in a folder.

    name: as a message says it, and as the marker does. marks: a file that tells the folder, relative to it, with keys of its JSON
    object; without keys the file alone tells. keeps_marker is False where the command writes such a file before its work.
    """

    name: str
    marks: Tuple[Tuple[str, Tuple[str, ...]], ...]
    keeps_marker: bool = True

    def made(self, folder: Path) -> bool:
        return any(_has_keys(folder / name, keys) for name, keys in self.marks)


RUN = FolderKind("a run", (("run.json", ("status", "task")),), keeps_marker=False)
SEARCH = FolderKind("a search", (("search.json", ("task", "space")),), keeps_marker=False)
PREPARED = FolderKind("prepared data", (("prepared.json", ("fingerprint",)), ("pixels.u8.plan", ())))
EVALUATION = FolderKind("an evaluation", (("metrics.json", ("run", "split")),))
PHANTOMS = FolderKind("phantoms", (("phantoms.csv", ()),))
CORPUS = FolderKind("a corpus", (("corpus.json", ("settings", "fingerprint")),))
TRACES = FolderKind("traces", (("training-1/stages.json", ()), ("inference-1/stages.json", ())))
_KINDS = (RUN, SEARCH, PREPARED, EVALUATION, PHANTOMS, CORPUS, TRACES)
# What a run or a search may have before its own first file: the corpus of a text task.
_CORPUS_FOLDER = "data"


def check_output(folder: Path, *kinds: FolderKind, flag: str = "--output") -> None:
    """Raise UserError unless the folder is new or empty, or one of these kinds. Logs and hidden files do not count."""
    folder = Path(folder)
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise UserError(f"{flag} {folder} is no folder. Give a new or empty folder.")
    strangers = _strangers(folder)
    kind = kind_of(folder)
    if kind in kinds or (kind is None and not strangers):
        return
    for name, keys in [mark for item in kinds for mark in item.marks]:
        if keys and kind is None and (folder / name).exists():
            raise UserError(
                f"{flag} {folder}: {folder / name} is damaged, or not of this command, so nothing is written there. "
                f"Give another {flag}."
            )
    if kind is not None:
        wanted = " or ".join(item.name for item in kinds)
        raise UserError(f"{flag} {folder} holds {kind.name}, and this command writes {wanted}. Give another {flag}.")
    names = ", ".join(strangers[:_MOST_NAMED]) + (", ..." if len(strangers) > _MOST_NAMED else "")
    raise UserError(
        f"{flag} {folder} holds files that this command did not make ({names}). Give a new or empty folder."
    )


def check_task_output(folder: Path, task: str, flag: str = "--output") -> None:
    """check_output() of a training or a search, which also refuses the folder of another task."""
    check_output(folder, RUN, SEARCH, flag=flag)
    for name, _ in (*RUN.marks, *SEARCH.marks):
        held = _json_object(Path(folder) / name).get("task", task)
        if held != task:
            raise UserError(f"{flag} {folder} is of {held}, and this command is of {task}. Give another {flag}.")


def claim(folder: Path, kind: FolderKind, flag: str = "--output") -> None:
    """check_output(), and the marker into a folder that nothing tells yet. Before the first write into it."""
    check_output(folder, kind, flag=flag)
    if kind.keeps_marker and kind_of(folder) is None:
        write_json(Path(folder) / MARKER, {"holds": kind.name})


def kind_of(folder: Path) -> Optional[FolderKind]:
    """What the folder holds, or None. Raises UserError for a marker that cannot be read."""
    folder = Path(folder)
    marker = folder / MARKER
    if marker.is_file():
        held = _json_object(marker).get("holds")
        known = next((kind for kind in _KINDS if kind.name == held), None)
        if known is None:
            raise UserError(
                f"{marker} is damaged, or of another release: {folder} is not touched. Give another folder."
            )
        return known
    return next((kind for kind in _KINDS if kind.made(folder)), None)


def check_output_file(file: Path, is_own: Callable[[str], bool], flag: str = "--output") -> None:
    """Raise UserError if file is a folder, or a file whose first 4 KiB is_own() does not take for this command's."""
    file = Path(file)
    if file.is_dir():
        raise UserError(f"{flag} {file} is a folder. Give a file.")
    if file.exists() and (not file.is_file() or not is_own(_head(file))):
        raise UserError(f"{flag} {file} exists, and this command did not write it. Give another {flag}.")


def is_page(head: str) -> bool:
    """Of check_output_file: an HTML page of a report, a comparison or a prediction."""
    return PAGE_HEAD in head


def is_prediction_table(head: str) -> bool:
    """Of check_output_file: the CSV of `predict`, of any run."""
    try:
        names = next(csv.reader(head.splitlines()[:1]), [])
    except csv.Error:
        return False
    columns = [name for name in names[2:] if name.startswith("probability_")]
    return names[:2] == ["file_name", "findings"] and bool(columns) and len(columns) == len(names) - 2


def _strangers(folder: Path) -> List[str]:
    """Names of what is somebody's in the folder: no hidden files, no logs, no corpus of a run that has not begun."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not _is_nothing(path) and not _is_early_corpus(path))


def _is_nothing(path: Path) -> bool:
    if is_hidden(path.name) or path.suffix in _LOGS:
        return True
    return path.is_dir() and not path.is_symlink() and all(map(_is_nothing, path.iterdir()))


def _is_early_corpus(path: Path) -> bool:
    return path.name == _CORPUS_FOLDER and path.is_dir() and kind_of(path) == CORPUS


def _head(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_HEAD_BYTES).decode("utf-8", "replace")


def _has_keys(file: Path, keys: Sequence[str]) -> bool:
    if not keys or not file.is_file():
        return file.is_file()
    found = _json_object(file)
    return all(key in found for key in keys)


def _json_object(file: Path) -> Any:
    """What the file holds where that is a JSON object, else an empty one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
