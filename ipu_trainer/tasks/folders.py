"""Where data and results lie when no flag says so: PUBLIC_DATASETS_DIR, DATASETS_DIR and CHECKPOINT_DIR.

    PUBLIC_DATASETS_DIR   read only: data sets that are mounted (on Paperspace Gradient /datasets)
    DATASETS_DIR          read and written: what `prepare` and `phantoms` make
    CHECKPOINT_DIR        written: runs, searches, evaluations

They replace flags that are left out; a flag that is given counts. Where both data folders have a folder of one name, that of
DATASETS_DIR counts. Nothing is written below PUBLIC_DATASETS_DIR.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from ipu_trainer.errors import UserError

PUBLIC_DATASETS_DIR, DATASETS_DIR, CHECKPOINT_DIR = "PUBLIC_DATASETS_DIR", "DATASETS_DIR", "CHECKPOINT_DIR"


def find_data(*names: str) -> Optional[Path]:
    """The first folder or file of these names below DATASETS_DIR, then below PUBLIC_DATASETS_DIR; None if there is none."""
    for variable in (DATASETS_DIR, PUBLIC_DATASETS_DIR):
        root = _root(variable)
        for name in names:
            if root is not None and (root / name).exists():
                return root / name
    return None


def data_to_read(flag: str, name: str) -> Path:
    """The default of a flag such as --data. Raises UserError, with the folders that were looked for, if there is none."""
    found = find_data(name)
    if found is not None:
        return found
    roots = {variable: _root(variable) for variable in (DATASETS_DIR, PUBLIC_DATASETS_DIR)}
    looked = [str(root / name) for root in roots.values() if root is not None]
    if looked:
        raise UserError(f"{flag} is missing, and there is no {' and no '.join(looked)} to read instead.")
    raise UserError(
        f"{flag} is missing. Give it, or set {DATASETS_DIR} or {PUBLIC_DATASETS_DIR} to a folder with {name}."
    )


def data_to_write(flag: str, name: str) -> Path:
    """DATASETS_DIR/name. Raises UserError if the variable is not set."""
    return _writable(flag, DATASETS_DIR, name)


def results(flag: str, name: str) -> Path:
    """CHECKPOINT_DIR/name. Raises UserError if the variable is not set."""
    return _writable(flag, CHECKPOINT_DIR, name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is what a system or an editor leaves beside data: .ipynb_checkpoints, __MACOSX, ._name."""
    return name.startswith(".") or name == "__MACOSX"


def _writable(flag: str, variable: str, name: str) -> Path:
    root = _root(variable)
    if root is None:
        raise UserError(f"{flag} is missing. Give a folder, or set {variable}: {variable}/{name} is taken then.")
    public = _root(PUBLIC_DATASETS_DIR)
    path = root / name
    if public is not None and public.resolve() in (path.resolve(), *path.resolve().parents):
        raise UserError(
            f"{variable} {root} lies in {PUBLIC_DATASETS_DIR} {public}, which is only read. Set {variable} to a folder elsewhere."
        )
    return path


def _root(variable: str) -> Optional[Path]:
    value = os.environ.get(variable, "")
    return Path(value).expanduser() if value else None
