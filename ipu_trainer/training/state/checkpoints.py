"""Finding the checkpoint that an interrupted run may go on from."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Optional, Union

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def last_complete_checkpoint(output_dir: Union[str, os.PathLike[str]]) -> Optional[str]:
    """The newest `checkpoint-N` folder that was written whole, or None.

    A folder that a kill cut short is passed over and the one before it is taken. transformers 5 writes
    trainer_state.json last, 4.29 the state of the random generators: both must be whole.
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
    states = [path / "optimizer.pt", path / "scheduler.pt", *(path.glob("rng_state*.pth"))]
    # torch.save writes zip archives, whose directory comes last: one that was cut short has none.
    return has_weights and len(states) > 2 and all(zipfile.is_zipfile(file) for file in states)
