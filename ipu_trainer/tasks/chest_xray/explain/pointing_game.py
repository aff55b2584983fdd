"""The pointing game (Zhang et al., ECCV 2016): how often a saliency map's maximum lies inside a box of the finding.

Boxes are NIH's BBox_List_2017.csv, or a file in its format, without tolerance around them. Localisation is compared with two
baselines: a random point and the centre of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.text_files import base_name, read_table
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Predictions
from ipu_trainer.tasks.chest_xray.explain.evaluated_images import EvaluatedImages, SaliencyMaps

# BBox_List_2017.csv is in pixels of the 1024 px images that NIH ships.
ORIGINAL_SIDE = 1024.0
_OTHER_NAMES = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True)
class Box:
    """left, top, width, height in fractions of the image's sides, which are the same in every size of an image."""

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


@dataclass(frozen=True)
class BoxedImage:
    """One image and finding with boxes; maps is None without the image or the model."""

    name: str
    column: int
    probability: float
    boxes: Tuple[Box, ...]
    maps: Optional[SaliencyMaps]

    @property
    def is_hit(self) -> bool:
        return self.maps is not None and is_hit(self.maps.gradient, self.boxes)


@dataclass(frozen=True)
class BoxedImages:
    """The evaluated images with boxes, one entry a finding; the counts describe the rest of the file of boxes."""

    images: Tuple[BoxedImage, ...]
    findings: Tuple[str, ...]
    num_listed: int
    num_in_other_splits: int
    unknown_findings: Tuple[str, ...]
    num_evaluated: int


class PointingGameRow(NamedTuple):
    """Hits of both maps and of the image's centre; random_hits is the expected number for a random point.

    rollout_hits is None for models without rollout.
    """

    finding: str
    num_images: int
    gradient_hits: int
    rollout_hits: Optional[int]
    centre_hits: int
    random_hits: float


def match_boxes(predictions: Predictions, images: EvaluatedImages, boxes: Mapping[str, Sequence[Box]]) -> BoxedImages:
    """The evaluated images that have boxes of findings among the model's outputs."""
    wanted: List[Tuple[int, int]] = []
    unknown = set()
    for row, name in enumerate(predictions.file_names):
        for finding in dict.fromkeys(box.finding for box in boxes.get(base_name(name), ())):
            if finding in predictions.findings:
                wanted.append((row, predictions.findings.index(finding)))
            else:
                unknown.add(finding)
    maps = images.maps([(predictions.file_names[row], column) for row, column in wanted])
    matched = []
    for (row, column), found in zip(wanted, maps):
        name, finding = predictions.file_names[row], predictions.findings[column]
        of_finding = tuple(box for box in boxes[base_name(name)] if box.finding == finding)
        matched.append(BoxedImage(name, column, float(predictions.probability[row, column]), of_finding, found))
    in_other_splits = len(images.names_in_other_splits().intersection(boxes))
    return BoxedImages(
        tuple(matched), predictions.findings, len(boxes), in_other_splits, tuple(sorted(unknown)), len(predictions)
    )


def pointing_game(boxed: BoxedImages) -> List[PointingGameRow]:
    """One row a finding, and a last one of all findings together. Images without maps do not count."""
    played = [image for image in boxed.images if image.maps is not None]
    columns = sorted({image.column for image in played})
    groups = [(boxed.findings[column], [image for image in played if image.column == column]) for column in columns]
    groups.append(("all", played))
    return [
        PointingGameRow(
            finding,
            len(images),
            sum(image.is_hit for image in images),
            _rollout_hits(images),
            sum(any(box.contains(0.5, 0.5) for box in image.boxes) for image in images),
            sum(covered_share(image.boxes) for image in images),
        )
        for finding, images in groups
    ]


def _rollout_hits(images: Sequence[BoxedImage]) -> Optional[int]:
    rollouts = [(image.maps.rollout, image.boxes) for image in images if image.maps is not None]
    if any(rollout is None for rollout, _ in rollouts):
        return None
    return sum(is_hit(rollout, boxes) for rollout, boxes in rollouts if rollout is not None)


def is_hit(saliency_map: np.ndarray, boxes: Sequence[Box]) -> bool:
    """Whether the maximum of the map (rows, columns) lies inside one of the boxes; False where no cell stands out."""
    point = highest_point(saliency_map)
    return point is not None and any(box.contains(*point) for box in boxes)


def highest_point(saliency_map: np.ndarray) -> Optional[Tuple[float, float]]:
    """(x, y) of the centre of the map's largest cell, in fractions of the sides; None if all cells are equal."""
    values = np.nan_to_num(np.asarray(saliency_map, dtype=np.float64))
    if values.size == 0 or values.max() == values.min():
        return None
    row, column = divmod(int(values.argmax()), values.shape[1])
    return (column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]


def covered_share(boxes: Sequence[Box], side: int = 512) -> float:
    """Fraction of the image inside at least one box: the hit rate of a random point."""
    mask = np.zeros((side, side), dtype=bool)
    for box in boxes:
        top, left = math.floor(box.top * side), math.floor(box.left * side)
        mask[top : math.ceil((box.top + box.height) * side), left : math.ceil((box.left + box.width) * side)] = True
    return float(mask.mean())
