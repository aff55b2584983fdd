"""Boxes that radiologists drew around findings (NIH's BBox_List_2017.csv), and the pointing game played with them.

A box is kept in shares of the picture's sides: preparation resizes whole pictures, so a share is the same place in the
1024 px original and in what the model reads.
"""

from __future__ import annotations

import csv
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows

# BBox_List_2017.csv is in pixels of the 1024 px images that NIH ships.
ORIGINAL_SIDE = 1024.0
_OTHER_NAMES = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True)
class Box:
    """left, top, width, height in shares of the picture's sides."""

    finding: str
    left: float
    top: float
    width: float
    height: float

    @property
    def rectangle(self) -> Tuple[float, float, float, float]:
        return self.left, self.top, self.width, self.height

    def contains(self, x: float, y: float) -> bool:
        return self.left <= x <= self.left + self.width and self.top <= y <= self.top + self.height


def read_table(path: Path) -> List[List[str]]:
    """Lines of a CSV, or of a CSV packed by gzip. Raises ValueError if it is neither."""
    try:
        with open_text(path) as text:
            return list(table_rows(text))
    except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is no readable CSV ({error}). Give NIH's file, plain or .gz.") from error


def read_boxes(path: Path) -> Dict[str, List[Box]]:
    """Boxes by the name of the image file. Raises ValueError with the line for a box that cannot be."""
    lines = read_table(path)
    if not lines or [cell.strip() for cell in lines[0][:2]] != ["Image Index", "Finding Label"]:
        raise UserError(
            f"{path} begins with {','.join(lines[0])[:120] if lines else 'nothing'!r}, but a list of boxes with Image Index,"
            "Finding Label,Bbox [x,y,w,h]. Give NIH's BBox_List_2017.csv or a file like it."
        )
    boxes: Dict[str, List[Box]] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cells):
            continue
        try:
            x, y, width, height = (float(cell) / ORIGINAL_SIDE for cell in cells[2:6])
            good = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 1.001 and y + height <= 1.001
        except ValueError:
            good = False
        if not good:
            raise UserError(
                f"{path}, line {number}: {','.join(cells)[:120]!r} is no box within {ORIGINAL_SIDE:.0f} x "
                f"{ORIGINAL_SIDE:.0f} pixels (name, finding, x, y, width, height). Mend or remove the line."
            )
        finding = _OTHER_NAMES.get(cells[1].strip(), cells[1].strip())
        boxes.setdefault(file_name(cells[0]), []).append(Box(finding, x, y, width, height))
    return boxes


def file_name(text: str) -> str:
    """The last part of a path of any system: images are matched by it alone, and nothing is opened by it."""
    return text.strip().replace("\\", "/").rsplit("/", 1)[-1]


def highest_point(heat: np.ndarray) -> Optional[Tuple[float, float]]:
    """(x, y) of the warmest cell's middle, in shares of the sides, for heat (rows, columns); None if no cell stands out."""
    values = np.nan_to_num(np.asarray(heat, dtype=np.float64))
    if values.size == 0 or values.max() == values.min():
        return None
    row, column = divmod(int(values.argmax()), values.shape[1])
    return (column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]


def is_hit(heat: np.ndarray, boxes: Sequence[Box]) -> bool:
    """The pointing game (Zhang et al., ECCV 2016), without a margin around the boxes."""
    point = highest_point(heat)
    return point is not None and any(box.contains(*point) for box in boxes)


def covered_share(boxes: Sequence[Box], side: int = 512) -> float:
    """Share of the picture inside of at least one box: how often a random point would hit."""
    mask = np.zeros((side, side), dtype=bool)
    for box in boxes:
        top, left = math.floor(box.top * side), math.floor(box.left * side)
        mask[top : math.ceil((box.top + box.height) * side), left : math.ceil((box.left + box.width) * side)] = True
    return float(mask.mean())
