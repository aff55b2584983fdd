"""A prepared chest X-ray data set: manifest, pixel store, rows, and the digests that the manifest has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape
from ipu_trainer.tasks.checking.file_checks import MISSING, FileGroup, json_problem
from ipu_trainer.tasks.chest_xray.data.dataset import PreparedChestXrays, load_prepared
from ipu_trainer.tasks.chest_xray.data.integrity.digests import digest_of_files
from ipu_trainer.tasks.chest_xray.data.integrity.prepared_folder import MANIFEST, METADATA, read_manifest
from ipu_trainer.tasks.chest_xray.data.pixel_store import STORE_FILE, read_header
from ipu_trainer.tasks.chest_xray.data.splits import SPLITS
from ipu_trainer.tasks.output_guard import MARKER, PREPARED

# What this release counts; what it reads is checked as everywhere.
_COUNTED = {"counts": {str: {"images": int, "findings": {str: int}}}, "rejected": int}


def check_prepared(folder: Path) -> List[FileGroup]:
    manifest, problem = _manifest(folder)
    about = "" if problem else f"{manifest['num_images']:,} images, {len(manifest['findings'])} findings"
    groups = [FileGroup(MANIFEST, about, problem)]
    store = _store(folder, manifest)
    groups.append(store)
    if problem or store.problem:
        return groups
    if (folder / MARKER).exists():
        marker, problem = json_problem(folder / MARKER, {"holds": str})
        wrong = (
            "" if problem or marker["holds"] == PREPARED.name else f"it says that the folder holds {marker['holds']}"
        )
        groups.append(FileGroup(MARKER, "of `prepare`", problem or wrong))
    groups += [_rows(folder, manifest), _records(folder, manifest), _rejected(folder, manifest)]
    if "digests" in manifest and not any(group.problem for group in groups):
        groups.append(_digests(folder, manifest))
    return groups


def _manifest(folder: Path) -> Tuple[Dict[str, Any], str]:
    """(prepared.json, what is wrong with it)"""
    try:
        manifest = read_manifest(folder)
        check_shape(manifest, _COUNTED, folder / MANIFEST)
    except UserError as error:
        return {}, str(error)
    return manifest, ""


def _digests(folder: Path, manifest: Dict[str, Any]) -> FileGroup:
    """Of pixels and records; those of the rows and of the manifest are compared where these are read."""
    try:
        load_prepared(folder).pixel_check.wait()
    except UserError as error:
        return FileGroup("digests", problem=str(error))
    wrong = digest_of_files([folder / METADATA]) != manifest["digests"].get(METADATA)
    return FileGroup("digests", "are right", f"{METADATA} is not what `prepare` wrote" if wrong else "")


def _store(folder: Path, manifest: Dict[str, Any]) -> FileGroup:
    if not (folder / STORE_FILE).is_file():
        return FileGroup(STORE_FILE, problem=MISSING)
    try:
        header = read_header(folder / STORE_FILE)
    except UserError as error:
        return FileGroup(STORE_FILE, problem=str(error))
    problem = ""
    if header.source_hash != manifest.get("fingerprint", header.source_hash):
        problem = f"it is of another preparation than {MANIFEST}"
    elif header.size != manifest.get("size", header.size):
        problem = f"its images have {header.size} pixels a side, and {MANIFEST} says {manifest['size']}"
    return FileGroup(STORE_FILE, f"{header.num_rows:,} images of {header.size} x {header.size}", problem)


def _rows(folder: Path, manifest: Dict[str, Any]) -> FileGroup:
    for name in ("state.json", "dataset_info.json"):
        problem = json_problem(folder / "metadata" / name, {})[1]
        if problem:
            return FileGroup("metadata/", problem=f"{name}: {problem}")
    try:
        data = load_prepared(folder)
    except UserError as error:
        return FileGroup("metadata/", problem=str(error))
    except (ValueError, KeyError, TypeError, OSError) as error:  # columns that are not there, of other types or lengths
        return FileGroup("metadata/", problem=f"its rows cannot be read ({type(error).__name__}: {error})")
    table, labels = data.everything.table, data.everything.labels
    counts = {split: sum(where == split for where in table.get("split", [])) for split in SPLITS}
    wanted = {split: manifest["counts"].get(split, {}).get("images") for split in SPLITS}
    problem = ""
    if counts != wanted:
        problem = f"its splits have {counts} images, and {MANIFEST} says {wanted}"
    elif not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        problem = "it holds a label that is neither 0, 1 nor unknown"
    elif _positives(data) != _promised(manifest):
        problem = f"its labels are not those that {MANIFEST} counts"
    return FileGroup("metadata/", f"{len(labels):,} rows", problem)


def _positives(data: PreparedChestXrays) -> Dict[str, Dict[str, int]]:
    where = np.array(data.everything.table["split"])
    labels = data.everything.labels
    return {
        split: {name: int((labels[where == split, column] == 1).sum()) for column, name in enumerate(data.findings)}
        for split in SPLITS
    }


def _promised(manifest: Dict[str, Any]) -> Dict[str, Any]:
    return {split: manifest["counts"][split].get("findings") for split in SPLITS}


def _records(folder: Path, manifest: Dict[str, Any]) -> FileGroup:
    path = folder / METADATA
    if not path.is_file():
        return FileGroup(METADATA, problem=MISSING)
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                record = json.loads(line)
                if not isinstance(record, dict) or len(record["labels"]) != len(manifest["findings"]):
                    raise ValueError(f"it has not {len(manifest['findings'])} labels")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return FileGroup(METADATA, problem=f"line {number}: {error}")
    wrong = number != manifest["num_images"]
    problem = f"it has {number:,} lines, and {MANIFEST} says {manifest['num_images']:,}" if wrong else ""
    return FileGroup(METADATA, f"{number:,} lines", problem)


def _rejected(folder: Path, manifest: Dict[str, Any]) -> FileGroup:
    from ipu_trainer.tasks.chest_xray.data.text_files import read_table

    path = folder / "rejected.csv"
    if not path.is_file():
        return FileGroup(path.name, problem=MISSING)
    try:
        count = len(read_table(path)) - 1
    except UserError as error:
        return FileGroup(path.name, problem=str(error))
    problem = (
        f"it has {count} lines, and {MANIFEST} says {manifest['rejected']}" if count != manifest["rejected"] else ""
    )
    return FileGroup(path.name, f"{count} lines", problem)
