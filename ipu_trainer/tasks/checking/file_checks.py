"""What one file says of itself: JSON with the keys that are needed, images, archives of torch, digests. Nothing is changed."""

from __future__ import annotations

import functools
import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple, Union

from PIL import Image

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json

MISSING = "missing"
_LARGEST_JSON_BYTES = 1 << 28
_READ_BYTES = 1 << 20
# By the number of hexadecimal digits.
_DIGESTS: Dict[int, Callable[[], Any]] = {64: hashlib.sha256, 32: functools.partial(hashlib.blake2b, digest_size=16)}
Kinds = Union[type, Tuple[type, ...]]


@dataclass(frozen=True)
class FileGroup:
    """One line of the table: files that are judged together, what is in them, and what is wrong; "" where they are whole."""

    files: str
    about: str = ""
    problem: str = ""

    @property
    def state(self) -> str:
        return ("missing" if self.problem == MISSING else "damaged") if self.problem else "whole"


def json_problem(path: Path, needs: Mapping[str, Kinds]) -> Tuple[Dict[str, Any], str]:
    """(the JSON object in path, what is wrong with it). needs: keys that must be there, with the types of their values."""
    if not path.is_file():
        return {}, MISSING
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        return {}, f"{path.stat().st_size:,} bytes are too many for this file"
    try:
        value = read_json(path, not_finite=True)
    except (UserError, RecursionError) as error:
        return {}, _one_line(error) or "nested too deeply"
    if not isinstance(value, dict):
        return {}, f"it holds no JSON object but a {type(value).__name__}"
    for key, kinds in needs.items():
        if key not in value:
            return value, f"it has no {key}"
        if not isinstance(value[key], kinds) or (isinstance(value[key], bool) and kinds is int):
            return value, f"{key} is a {type(value[key]).__name__}"
    return value, ""


def unreadable_json(folder: Path, known: Sequence[str] = ()) -> List[str]:
    """What is wrong with the other JSON files directly in folder: the name and the reason of each."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name in known or path.name.startswith("."):
            continue
        try:
            read_json(path, not_finite=True)
        except (UserError, OSError, RecursionError) as error:
            found.append(f"{path.name}: {_one_line(error)}")
    return found


def image_problem(path: Path) -> str:
    """Of a PNG: its checksums are compared, no pixel is decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, zlib.error) as error:
        return f"{path.name}: {_one_line(error)}"
    return ""


def archive_problem(path: Path) -> str:
    """Of what torch.save wrote, a zip archive: the checksum of each record is compared, piece by piece."""
    if not path.is_file():
        return MISSING
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        return f"it is no whole archive of torch.save ({_one_line(error)})"
    return f"its record {broken} has another checksum" if broken else ""


def digest_problems(folder: Path, digests: Any) -> List[str]:
    """Files of {name: digest} that are missing or have another one: the name and the reason of each.

    A digest is hexadecimal (sha256, or blake2b of 16 bytes), or {"bytes": length, "crc32": hexadecimal}.
    """
    if not isinstance(digests, dict):
        return [f"the digests are a {type(digests).__name__}"]
    found = []
    for name, wanted in sorted(digests.items()):
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            found.append(f"{name}: it lies outside of the folder")
        elif not path.is_file():
            found.append(f"{name}: {MISSING}")
        elif _digest_like(wanted, path) != wanted:
            found.append(f"{name}: its content has another digest")
    return found


def _digest_like(wanted: Any, path: Path) -> Any:
    """The file's digest in the form of wanted; None where that is none."""
    if isinstance(wanted, dict):
        crc = 0
        for part in parts_of(path):
            crc = zlib.crc32(part, crc)
        return {"bytes": path.stat().st_size, "crc32": f"{crc:08x}"}
    if not isinstance(wanted, str) or len(wanted) not in _DIGESTS:
        return None
    digest = _DIGESTS[len(wanted)]()
    for part in parts_of(path):
        digest.update(part)
    return digest.hexdigest()


def parts_of(path: Path) -> Iterator[bytes]:
    """The content of a file, a megabyte at a time."""
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_READ_BYTES), b"")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
