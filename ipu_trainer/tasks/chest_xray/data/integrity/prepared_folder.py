"""The files of a prepared folder: opened with a check that they are whole and belong together; files of others are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pyarrow
import pyarrow.ipc

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape, read_json
from ipu_trainer.tasks.chest_xray.data.integrity.digests import PixelCheck, digest_of_files, manifest_digest
from ipu_trainer.tasks.chest_xray.data.pixel_store import (
    STORE_FILE,
    StoreHeader,
    is_being_filled,
    read_header,
    stored_rows,
)

MANIFEST = "prepared.json"
METADATA = "metadata.jsonl"
ROWS = "metadata"
REJECTED = "rejected.csv"
REJECTED_HEADER = ["file", "line", "reason"]
FORMAT_VERSION = 1
_MANIFEST = {
    "format_version": int, "fingerprint": str, "findings": [str], "num_images": int, "size": int, "resample": str,
    "decoding?": {"scale?": ({str: object}, None), "window?": str}, "split": {"method": str},
    "labels?": {"format?": (str, None)}, "source": {"csv": str}, "digest?": str, "digests?": {str: str},
}  # fmt: skip
_AGAIN = "Prepare the data again into a new folder."


class PreparedError(UserError):
    """A folder that is not a finished output of `ipu-trainer prepare chest-xray`, or is damaged."""


def read_manifest(folder: Path) -> Dict[str, Any]:
    """prepared.json. Raises PreparedError if it is damaged, or of another version."""
    path = folder / MANIFEST
    try:
        manifest: Dict[str, Any] = read_json(path, {}, _AGAIN)
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}. {_AGAIN}")
        if "digest" in manifest and manifest["digest"] != manifest_digest(manifest):
            raise UserError(f"{path} is damaged: it is not what `prepare` wrote. {_AGAIN}")
        check_shape(manifest, _MANIFEST, path, _AGAIN)
    except UserError as error:
        raise PreparedError(str(error)) from None
    return manifest


def check_store(folder: Path, manifest: Dict[str, Any]) -> StoreHeader:
    """The header of the pixels. Raises PreparedError or StoreError if they are cut, or of another preparation."""
    header = read_header(folder / STORE_FILE)
    if header.source_hash != manifest["fingerprint"] or header.size != manifest["size"]:
        raise PreparedError(
            f"{folder}: {STORE_FILE} and {MANIFEST} are of different preparations. Prepare the data again."
        )
    if header.pixels != manifest.get("digests", {}).get("pixels") or (header.pixels is None) != (
        "digest" not in manifest
    ):
        raise PreparedError(
            f"{folder}: the digests in {STORE_FILE} and {MANIFEST} are not the same: one is damaged. {_AGAIN}"
        )
    return header


def arrow_files(folder: Path) -> List[Path]:
    """The files with the rows, in their order. Raises PreparedError if `metadata/` is damaged."""
    rows = folder / ROWS
    state = rows / "state.json"
    try:
        content = read_json(state, {"_data_files": [{"filename": str}]})
        found = [rows / Path(item["filename"]).name for item in content["_data_files"]]
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing")
    except (OSError, UserError) as error:
        raise PreparedError(f"{rows} is damaged ({error}). {_AGAIN}") from error
    return found


def check_rows(folder: Path, manifest: Dict[str, Any]) -> List[Path]:
    """arrow_files, whose bytes are those that were written. Raises PreparedError for others."""
    files = arrow_files(folder)
    expected = manifest.get("digests", {}).get(ROWS)
    if expected is not None and digest_of_files(files) != expected:
        raise PreparedError(
            f"{folder / ROWS} is damaged, or of another preparation than {MANIFEST}: its labels and splits are not those that "
            f"were written. {_AGAIN}"
        )
    return files


def read_rows(files: List[Path]) -> pyarrow.Table:
    """The rows of files that `datasets` wrote. Raises PreparedError if they are no such files.

    Read with pyarrow, because datasets 2 cannot read the column types that datasets 4 and later write, and both stacks have to
    read the same prepared folder.
    """
    try:
        return pyarrow.concat_tables(
            [pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all() for path in files]
        )
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise PreparedError(f"{files[0].parent} is damaged ({error}). {_AGAIN}") from error


def pixel_check(folder: Path, manifest: Dict[str, Any], pixel_rows: Any) -> PixelCheck:
    """Begins to compare all pixels with their digest; nothing is compared in a folder of an earlier release."""
    path = folder / STORE_FILE
    error = PreparedError(f"{path} is damaged: its pixels are not those that were written. {_AGAIN}")
    return PixelCheck(stored_rows(path, pixel_rows), manifest.get("digests", {}).get("pixels"), error)


def keep_foreign_files(output: Path) -> Tuple[Path, ...]:
    """What an unfinished preparation left in a folder without manifest, to be removed by the caller.

    Raises UserError where files of the names that `prepare` writes are there and no preparation has begun: they are the user's.
    """
    ours = tuple(path for path in (output / ROWS, output / METADATA) if path.exists() or path.is_symlink())
    if is_being_filled(output / STORE_FILE):
        return ours
    foreign = [*ours, *(path for path in (output / STORE_FILE,) if path.exists())]
    rejected = output / REJECTED
    if rejected.exists() and not _is_list_of_rejections(rejected):
        foreign.append(rejected)
    if foreign:
        raise UserError(
            f"{foreign[0]} is there and no part of an unfinished preparation, so it would be lost. Give another --output, or move "
            "it away."
        )
    return ()


def _is_list_of_rejections(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(100).strip() == ",".join(REJECTED_HEADER).encode()
