"""What the folder is, a table with a line for each group of files, and what to do next."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import List, Tuple

from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.tasks.checking.checkpoint_check import check_checkpoint, digest_group
from ipu_trainer.tasks.checking.file_checks import FileGroup, unreadable_json
from ipu_trainer.tasks.checking.run_check import CheckedRun, check_run
from ipu_trainer.tasks.checking.weight_checks import check_weights

_MODEL_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def run(path: Path) -> int:
    """Print what `ipu-trainer check PATH` finds; returns 0 where everything is whole and finished, else 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about files that the table judges
        kind, checked = check(path)
    bad = [group for group in checked.groups if group.problem]
    print(f"{path}: {kind}\n")
    width = max(len(group.files) for group in checked.groups)
    for group in checked.groups:
        text = {"whole": group.about, "damaged": group.problem}.get(group.state, "")
        print(f"{group.files:{width}}  {group.state:8} {text}".rstrip())
    verdict = "whole" if not bad else f"not whole: {len(bad)} of {len(checked.groups)} file groups"
    print(f"\n{verdict}. {checked.next_move}".rstrip())
    return 1 if bad or checked.next_move else 0


def check(path: Path) -> Tuple[str, CheckedRun]:
    """(what the folder is, its groups of files with the next move). Raises UserError for a folder of none of the four kinds."""
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist. Give a prepared folder, a run, a model folder or a checkpoint.")
    if not path.is_dir():
        raise UserError(f"{path} is a file. Give the folder that holds it.")
    if (path / "run.json").exists():
        return "a run", check_run(path)
    if (path / "prepared.json").exists():
        from ipu_trainer.tasks.checking.prepared_check import check_prepared

        again = "Prepare the data again into a new folder, or remove this one and give the same prepare command again."
        return "prepared data", _with_move(check_prepared(path), again)
    if (path / "pixels.u8.plan").exists():
        again = "It is not finished. Give the same prepare command again: it goes on."
        return "prepared data", CheckedRun([FileGroup("prepared.json", problem="missing")], again)
    if (path / "trainer_state.json").exists():
        again = "Resume from another checkpoint: the same train command takes the last whole one."
        return "a checkpoint", _with_move(check_checkpoint(path), again)
    if any((path / name).exists() for name in _MODEL_FILES):
        again = "Download or copy the model again. Pointers of git lfs are no weights: `git lfs pull` fetches them."
        others = FileGroup("other JSON files", "readable", "; ".join(unreadable_json(path, ["config.json"])))
        return "a model", _with_move([*check_weights(path), others, *digest_group(path)], again)
    raise UserError(
        f"{path} holds none of prepared.json, run.json, trainer_state.json and config.json, so it is no prepared folder, run, "
        "checkpoint or model folder."
    )


def _with_move(groups: List[FileGroup], again: str) -> CheckedRun:
    return CheckedRun(groups, again if any(group.problem for group in groups) else "")
