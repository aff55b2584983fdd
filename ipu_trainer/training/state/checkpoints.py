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
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    newest_first = sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((str(path) for path in newest_first if _is_complete(path)), None)


def _is_complete(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    has_weights = any((path / name).is_file() for name in _WEIGHTS)
    states = [path / "optimizer.pt", path / "scheduler.pt", *(path.glob("rng_state*.pth"))]
    # torch.save writes zip archives, whose directory comes last: one that was cut short has none.
    return has_weights and len(states) > 2 and all(zipfile.is_zipfile(file) for file in states)
