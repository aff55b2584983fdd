"""The pointing game: does the model look where radiologists drew a box?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.evaluation.calibration import wilson_interval
from ipu_trainer.tasks.chest_xray.evaluation.predictions import Predictions
from ipu_trainer.tasks.chest_xray.explain.boxes import Box, covered_share, file_name, is_hit
from ipu_trainer.tasks.chest_xray.explain.saliency_images import Looking, case_of
from ipu_trainer.tasks.reporting.html_document import Block, Cases, Table, Text, number

_MOST_BOXED = 12  # pictures; the pointing game is played with all


@dataclass(frozen=True)
class BoxedImage:
    """One image and finding with boxes, and where the model looked: heat (rows, columns), None without a model."""

    name: str
    column: int
    probability: float
    boxes: Tuple[Box, ...]
    gradient: Optional[np.ndarray]
    rollout: Optional[np.ndarray]


@dataclass(frozen=True)
class BoxedImages:
    """images: what the game is played with. The counts say what the file has besides."""

    images: Tuple[BoxedImage, ...]
    findings: Tuple[str, ...]
    num_listed: int
    num_in_other_splits: int
    unknown_findings: Tuple[str, ...]
    num_evaluated: int


def look_at_boxes(predictions: Predictions, looking: Looking, boxes: Mapping[str, Sequence[Box]]) -> BoxedImages:
    """The evaluated images that have boxes of findings that the model has an output for."""
    wanted: List[Tuple[int, int]] = []
    unknown = set()
    for row, name in enumerate(predictions.file_names):
        for finding in dict.fromkeys(box.finding for box in boxes.get(file_name(name), ())):
            if finding not in predictions.findings:
                unknown.add(finding)
            else:
                wanted.append((row, predictions.findings.index(finding)))
    heats = looking.heats([(predictions.file_names[row], column) for row, column in wanted])
    images = []
    for (row, column), (gradient, rollout) in zip(wanted, heats):
        name = predictions.file_names[row]
        own = tuple(box for box in boxes[file_name(name)] if box.finding == predictions.findings[column])
        images.append(BoxedImage(name, column, float(predictions.probability[row, column]), own, gradient, rollout))
    return BoxedImages(
        tuple(images),
        predictions.findings,
        len(boxes),
        len(looking.in_other_splits().intersection(boxes)),
        tuple(sorted(unknown)),
        len(predictions),
    )


def pointing_game(boxed: BoxedImages) -> List[Tuple[str, int, int, int, int, float]]:
    """Rows (finding, images, hits of gradient-weighted attention, of rollout, of the picture's middle, expected by chance).

    The last row is of all findings. Only images with saliency count.
    """
    played = [image for image in boxed.images if image.gradient is not None and image.rollout is not None]
    rows = []
    names = sorted({image.column for image in played})
    for label, chosen in [
        *((boxed.findings[column], [i for i in played if i.column == column]) for column in names),
        ("all", played),
    ]:
        rows.append(
            (
                label,
                len(chosen),
                sum(is_hit(image.gradient, image.boxes) for image in chosen if image.gradient is not None),
                sum(is_hit(image.rollout, image.boxes) for image in chosen if image.rollout is not None),
                sum(any(box.contains(0.5, 0.5) for box in image.boxes) for image in chosen),
                sum(covered_share(image.boxes) for image in chosen),
            )
        )
    return rows


def looking_blocks(boxed: BoxedImages, looking: Looking) -> List[Block]:
    num_images = len({image.name for image in boxed.images})
    told = (
        f"{num_images} of the {boxed.num_evaluated:,} evaluated images have boxes, {len(boxed.images)} pairs of image and "
        f"finding; the file lists {boxed.num_listed:,} images, {boxed.num_in_other_splits} of them in other splits of these data."
    )
    if boxed.unknown_findings:
        told += f" The model has no output for {', '.join(boxed.unknown_findings)}."
    if not boxed.images:
        return [Text(told + " There is nothing to point at.", "warning")]
    if not any(image.gradient is not None for image in boxed.images):
        return [Text(f"{told} {looking.reason or looking.reason_no_model}", "warning")]
    few = " So few say little: mind the intervals." if len(boxed.images) < 100 else ""
    rows = []
    for label, count, gradient, rollout, middle, chance in pointing_game(boxed):
        low, high = wilson_interval(gradient, count)
        rows.append(
            [
                label,
                str(count),
                f"{gradient} ({number(gradient / count, 2)})",
                f"{number(low, 2)} – {number(high, 2)}",
                f"{rollout} ({number(rollout / count, 2)})",
                f"{middle} ({number(middle / count, 2)})",
                f"{number(chance, 1)} ({number(chance / count, 2)})",
            ]
        )
    head = [
        "finding",
        "images",
        "hits, gradient-weighted",
        "95 % interval",
        "hits, rollout",
        "picture's middle",
        "chance",
    ]
    chosen = _shown(boxed.images)
    cases = [
        case_of(
            f"{boxed.findings[image.column]}",
            image.name,
            [f"probability {number(image.probability)}", "hit" if _hit(image) else "missed"],
            looking,
            image.boxes,
            (image.gradient, image.rollout),
            "good" if _hit(image) else "bad",
        )
        for image in chosen
    ]
    return [
        Text(told + few),
        Table(head, rows, [len(rows) - 1]),
        Text(
            "The pointing game: a hit is where the map's highest point lies inside a box of the finding. A random point would "
            "hit as often as chance says; the picture's middle is the plainest guess. Gradient-weighted attention is of the "
            "finding, rollout is the same for all findings. Both show what the model used, not why, and no map proves that a "
            "finding is there.",
            "note",
        ),
        Text(f"{len(cases)} of the pairs, the likeliest of each finding first; boxes in light blue:"),
        Cases(cases),
    ]


def _shown(images: Sequence[BoxedImage]) -> List[BoxedImage]:
    """The likeliest of each finding, then the second likeliest of each, and so on."""
    ordered = sorted(images, key=lambda image: (-image.probability, image.name))
    turn: List[Tuple[int, BoxedImage]] = []
    seen: Counter[int] = Counter()
    for image in ordered:
        turn.append((seen[image.column], image))
        seen[image.column] += 1
    return [image for _, image in sorted(turn, key=lambda pair: pair[0])[:_MOST_BOXED]]


def _hit(image: BoxedImage) -> bool:
    return image.gradient is not None and is_hit(image.gradient, image.boxes)
