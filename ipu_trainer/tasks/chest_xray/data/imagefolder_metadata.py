"""metadata.jsonl for `datasets.load_dataset("imagefolder", data_dir=...)`, with labels as 0.0 and 1.0 for a multi-label loss.

A label that is unknown is null. patient_id is null where the data set has none, and study_id is there where it has some.

Where there are folders such as train/ and test/, datasets 5 reads only the metadata.jsonl inside each, so each gets one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence

from ipu_trainer.atomic import atomic_path, remove_leftovers
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.integrity.prepared_folder import METADATA
from ipu_trainer.tasks.chest_xray.data.label_formats.split_names import split_folder
from ipu_trainer.tasks.chest_xray.data.label_table import Row
from ipu_trainer.tasks.chest_xray.data.labels import n_hot

# Of every record, whatever the data set: by them a file that --in_place made is known from a user's own.
_KEYS = {"file_name", "labels", "patient_id", "age", "sex", "view", "follow_up"}


def records(rows: Sequence[Row], findings: Sequence[str]) -> Iterator[Dict[str, Any]]:
    with_studies = any(row.study_id for row in rows)
    for row in rows:
        labels = n_hot([row.findings], findings, [row.unknown])[0].tolist()
        yield {
            "file_name": row.path,
            "labels": [None if math.isnan(value) else value for value in labels],
            "patient_id": row.patient_id or None,
            **({"study_id": row.study_id or None} if with_studies else {}),
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
    """Earlier releases wrote labels as whole numbers. An unknown label is None."""
    with target.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield {**record, "labels": [None if value is None else float(value) for value in record["labels"]]}


def refuse_foreign_metadata(images: Path, paths: Iterable[str]) -> None:
    """Raise UserError where write_beside_images() would write over a metadata.jsonl that --in_place did not make."""
    for folder in dict.fromkeys(map(split_folder, paths)):
        target = images / folder / METADATA
        if target.exists() and not _is_own(target):
            raise UserError(f"--in_place would write over {target}, which it did not make. Leave it out.")


def _is_own(target: Path) -> bool:
    try:
        with target.open(encoding="utf-8") as lines:
            return set(json.loads(next(lines, "null")) or ()) >= _KEYS
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def write_beside_images(images: Path, lines: Iterable[Dict[str, Any]]) -> None:
    """One file in `images`, or one in each folder of a split below it, with names relative to it."""
    by_folder: Dict[str, List[Dict[str, Any]]] = {}
    for line in lines:
        folder = split_folder(line["file_name"])
        by_folder.setdefault(folder, []).append({**line, "file_name": line["file_name"][len(folder) :]})
    for folder, inside in by_folder.items():
        remove_leftovers(images / folder, below=False)
        write_records(images / folder / METADATA, inside)
