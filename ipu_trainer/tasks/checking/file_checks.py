"""What one file says of itself: JSON of the shape that is needed, images. Nothing is changed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from PIL import Image

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape, read_json

MISSING = "missing"
_LARGEST_JSON_BYTES = 1 << 28


@dataclass(frozen=True)
class FileGroup:
    """One line of the table: files that are judged together, what is in them, and what is wrong; "" where they are whole."""

    files: str
    about: str = ""
    problem: str = ""

    @property
    def state(self) -> str:
        return ("missing" if self.problem == MISSING else "damaged") if self.problem else "whole"


def json_problem(path: Path, shape: Any) -> Tuple[Dict[str, Any], str]:
    """(the JSON object in path, what is wrong with it). shape: as of json_files."""
    if not path.is_file():
        return {}, MISSING
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        return {}, f"{path.stat().st_size:,} bytes are too many for this file"
    value: Dict[str, Any] = {}
    try:
        value = read_json(path, {}, not_finite=True)
        check_shape(value, shape, path)
    except UserError as error:
        return value, _one_line(error).replace(f"{path}: ", "")
    return value, ""


def unreadable_json(folder: Path, known: Sequence[str] = ()) -> List[str]:
    """What is wrong with the other JSON files directly in folder: the name and the reason of each."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name in known or path.name.startswith("."):
            continue
        try:
            read_json(path, not_finite=True)
        except (UserError, OSError) as error:
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
