"""Finding the checkpoint that an interrupted run may go on from."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional, Union

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.stored_weights import WEIGHTS

_STATE = {
    "global_step": int,
    "epoch": (float, None),
    "max_steps?": int,
    "num_train_epochs?": float,
    "log_history?": [{str: object}],
    "best_metric?": (float, None),
    "best_model_checkpoint?": (str, None),
}


def last_complete_checkpoint(output_dir: Union[str, os.PathLike[str]]) -> Optional[str]:
    """The newest `checkpoint-N` folder that was written whole, or None.

    A folder that a kill cut short is passed over and the one before it is taken. transformers 5 writes
    trainer_state.json last, 4.29 the state of the random generators: both must be whole.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    newest_first = sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((str(path) for path in newest_first if _is_complete(path)), None)


def read_state(checkpoint: Union[str, os.PathLike[str]]) -> Dict[str, Any]:
    """trainer_state.json, which Trainer writes with NaN where a loss was none. Raises UserError for a damaged one."""
    state: Dict[str, Any] = read_json(
        Path(checkpoint) / "trainer_state.json", _STATE, "Resume from another checkpoint.", not_finite=True
    )
    return state


def _is_complete(path: Path) -> bool:
    try:
        read_state(path)
    except (UserError, OSError):
        return False
    has_weights = any((path / name).is_file() for name in WEIGHTS)
    states = [path / "optimizer.pt", path / "scheduler.pt", *(path.glob("rng_state*.pth"))]
    # torch.save writes zip archives, whose directory comes last: one that was cut short has none.
    return has_weights and len(states) > 2 and all(zipfile.is_zipfile(file) for file in states)
