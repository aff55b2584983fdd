"""metadata.jsonl for `datasets.load_dataset("imagefolder", data_dir=...)`, with labels as 0.0 and 1.0 for a multi-label loss.

Where there are folders such as train/ and test/, datasets 5 reads only the metadata.jsonl inside each, so each gets one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence

from ipu_trainer.atomic import atomic_path, remove_leftovers
from ipu_trainer.tasks.chest_xray.data.label_table import Row
from ipu_trainer.tasks.chest_xray.data.labels import n_hot

METADATA = "metadata.jsonl"
# Folder names that datasets takes for a split, alone or next to - . _ space or a digit (datasets/data_files.py).
_SPLIT_FOLDER = re.compile(
    r"(^|[-._ 0-9])(train|training|validation|valid|val|dev|test|testing|eval|evaluation)($|[-._ 0-9])"
)


def records(rows: Iterable[Row], findings: Sequence[str]) -> Iterator[Dict[str, Any]]:
    for row in rows:
        yield {
            "file_name": row.path,
            "labels": n_hot([row.findings], findings)[0].tolist(),
            "patient_id": row.patient_id,
            "age": row.age,
            "sex": row.sex,
            "view": row.view,
            "follow_up": row.follow_up,
        }


def write_records(target: Path, lines: Iterable[Dict[str, Any]]) -> None:
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line) + "\n")


def read_records(target: Path) -> Iterator[Dict[str, Any]]:
    """Earlier releases wrote labels as whole numbers."""
    with target.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield {**record, "labels": [float(value) for value in record["labels"]]}


def write_beside_images(images: Path, lines: Iterable[Dict[str, Any]]) -> None:
    """One file in `images`, or one in each folder of a split below it, with names relative to it."""
    by_folder: Dict[str, List[Dict[str, Any]]] = {}
    for line in lines:
        folder = _split_folder(line["file_name"])
        by_folder.setdefault(folder, []).append({**line, "file_name": line["file_name"][len(folder) :]})
    for folder, inside in by_folder.items():
        remove_leftovers(images / folder, below=False)
        write_records(images / folder / METADATA, inside)


def _split_folder(path: str) -> str:
    """ "a/train/x/b.png" -> "a/train/"; "" where no folder is a split's."""
    *folders, _ = path.split("/")
    depth = next((depth for depth, name in enumerate(folders, start=1) if _SPLIT_FOLDER.search(name)), 0)
    return "".join(f"{name}/" for name in folders[:depth])
