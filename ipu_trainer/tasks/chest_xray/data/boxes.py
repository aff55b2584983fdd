"""Boxes that radiologists drew around findings: NIH's BBox_List_2017.csv, or a file in its format.

A box is stored in fractions of the image's sides: preparation resizes whole images, so a fraction is the same place in the
1024 px original and in the model's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.text_files import base_name, read_table

# BBox_List_2017.csv is in pixels of the 1024 px images that NIH ships.
ORIGINAL_SIDE = 1024.0
_OTHER_NAMES = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True)
class Box:
    """left, top, width, height in fractions of the image's sides."""

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


def read_boxes(path: Path) -> Dict[str, List[Box]]:
    """Boxes by image file name, without folders. Raises UserError with the line number for an impossible box."""
    lines = read_table(path)
    if not lines or [cell.strip() for cell in lines[0][:2]] != ["Image Index", "Finding Label"]:
        raise UserError(
            f"{path} begins with {','.join(lines[0])[:120] if lines else 'nothing'!r}; a list of boxes begins with "
            "Image Index,Finding Label,Bbox [x,y,w,h]. Give NIH's BBox_List_2017.csv or a file in its format."
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
                f"{ORIGINAL_SIDE:.0f} pixels (name, finding, x, y, width, height). Correct or remove the line."
            )
        finding = _OTHER_NAMES.get(cells[1].strip(), cells[1].strip())
        boxes.setdefault(base_name(cells[0]), []).append(Box(finding, x, y, width, height))
    return boxes
