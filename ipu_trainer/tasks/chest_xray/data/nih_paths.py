"""Default paths of NIH's data: the folder chest-xray-nihcc of Graphcore's tutorial, with the table, the lists and images/."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

from ipu_trainer.tasks.folders import data_to_read, find_data

FOLDER = "chest-xray-nihcc"
TABLES = tuple(f"{FOLDER}/Data_Entry_2017{version}.csv{packed}" for version in ("_v2020", "") for packed in ("", ".gz"))
LISTS = {"train_val_list": f"{FOLDER}/train_val_list.txt", "test_list": f"{FOLDER}/test_list.txt"}


def default_paths(given: Dict[str, Optional[Path]], split: Optional[str]) -> Dict[str, Path]:
    """Paths for the flags of `prepare` that are missing in given (csv, images, train_val_list, test_list).

    The lists are used if none of the four is given, both lists exist, and split is None or "official". Raises UserError if
    there is no table or no image folder.
    """
    found: Dict[str, Path] = {}
    if given["csv"] is None:
        found["csv"] = find_data(*TABLES) or data_to_read("--csv", TABLES[0])
    if given["images"] is None:
        found["images"] = data_to_read("--images", f"{FOLDER}/images")
    lists = {name: find_data(path) for name, path in LISTS.items()}
    if not any(given.values()) and split in (None, "official") and all(lists.values()):
        found.update({name: path for name, path in lists.items() if path is not None})
    return found
