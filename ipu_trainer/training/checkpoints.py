"""Finding the checkpoint that an interrupted run may go on from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Optional, Union

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def last_complete_checkpoint(output_dir: Union[str, os.PathLike[str]]) -> Optional[str]:
    """The newest `checkpoint-N` folder that was written whole, or None.

    Trainer writes trainer_state.json last, so a folder in which it can be read is complete; one that a kill cut short is
    passed over and the one before it is taken.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    found = []
    for path in folder.iterdir():
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match.group(1)), path))
    for _, path in sorted(found, reverse=True):
        if _is_complete(path):
            return str(path)
    return None


def _is_complete(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    has_weights = any((path / name).is_file() for name in _WEIGHTS)
    return has_weights and (path / "optimizer.pt").is_file() and (path / "scheduler.pt").is_file()
