"""Pictures with what the model saw in them: chosen predictions, and the images that radiologists drew boxes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, FrozenSet, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.boxes import Box, covered_share, file_name, is_hit
from ipu_trainer.tasks.chest_xray.calibration import wilson_interval
from ipu_trainer.tasks.chest_xray.dataset import ChestXrayDataset, PreparedChestXrays
from ipu_trainer.tasks.chest_xray.predictions import ChosenImage, Predictions
from ipu_trainer.tasks.chest_xray.saliency import Saliency, load_for_saliency, saliency
from ipu_trainer.tasks.chest_xray.transforms import ChestXrayCollator, load_normalisation
from ipu_trainer.tasks.pages.page import Block, Case, Cases, Picture, Table, Text, number
from ipu_trainer.tasks.pages.pictures import gray_picture, heat_picture

_MOST_BOXED = 12  # pictures; the pointing game is played with all
_IMAGES_AT_ONCE = 64


class Looking:
    """The evaluated images by file name and the model's saliency for them; reason says why there are none."""

    def __init__(
        self,
        subject: Optional[ChestXrayDataset] = None,
        model: Any = None,
        collator: Optional[ChestXrayCollator] = None,
        everything: Optional[ChestXrayDataset] = None,
        reason: str = "",
        reason_no_model: str = "",
    ) -> None:
        self.subject, self.model, self.collator = subject, model, collator
        self.everything = everything
        self.reason, self.reason_no_model = reason, reason_no_model
        names = [] if subject is None else subject.table["file_name"]
        self._position = {name: position for position, name in enumerate(names)}

    @classmethod
    def of_run(
        cls, run_dir: Path, findings: Sequence[str], prepared: PreparedChestXrays, subject: ChestXrayDataset
    ) -> Looking:
        everything = prepared.split("all")
        try:
            normalisation = load_normalisation(run_dir, prepared.size, prepared.manifest["resample"])
            model = load_for_saliency(run_dir, findings)
        except (ValueError, OSError) as error:
            return cls(subject, everything=everything, reason_no_model=f"No saliency: {error}")
        return cls(subject, model, ChestXrayCollator(normalisation), everything)

    def in_other_splits(self) -> FrozenSet[str]:
        """Names of the prepared images that were not evaluated, without folders."""
        if self.everything is None or self.subject is None:
            return frozenset()
        names = {file_name(name) for name in self.everything.table["file_name"]}
        return frozenset(names - {file_name(name) for name in self.subject.table["file_name"]})

    def has(self, name: str) -> bool:
        return name in self._position

    def pixels(self, name: str) -> np.ndarray:
        """uint8 (size, size)."""
        assert self.subject is not None
        return np.asarray(self.subject[self._position[name]]["pixels"])

    def saliency(self, names: Sequence[str], columns: Sequence[int]) -> Optional[Saliency]:
        """Maps of the images, each for one finding; None without a model."""
        if self.model is None or self.collator is None or self.subject is None:
            return None
        parts = []
        for start in range(0, len(names), _IMAGES_AT_ONCE):
            keys = [self._position[name] for name in names[start : start + _IMAGES_AT_ONCE]]
            pixels = self.collator(self.subject.__getitems__(keys))["pixel_values"]
            parts.append(saliency(self.model, pixels, columns[start : start + _IMAGES_AT_ONCE]))
        if not parts:
            return None
        return Saliency(np.concatenate([p.rollout for p in parts]), np.concatenate([p.gradient for p in parts]))


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
    seen = [(row, column) for row, column in wanted if looking.has(predictions.file_names[row])]
    maps = looking.saliency([predictions.file_names[row] for row, _ in seen], [column for _, column in seen])
    place = {key: number for number, key in enumerate(seen)}
    images = []
    for row, column in wanted:
        number_ = place.get((row, column))
        has_maps = maps is not None and number_ is not None
        images.append(
            BoxedImage(
                predictions.file_names[row],
                column,
                float(predictions.probability[row, column]),
                tuple(
                    b
                    for b in boxes[file_name(predictions.file_names[row])]
                    if b.finding == predictions.findings[column]
                ),
                maps.gradient[number_] if has_maps and maps is not None else None,
                maps.rollout[number_] if has_maps and maps is not None else None,
            )
        )
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
        _case(
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


_STORIES = {
    "found": ("Found", "positives that rank highest among all images", "good"),
    "missed": ("Missed", "positives that rank lowest", "bad"),
    "false alarm": ("False alarms", "negatives that rank highest", "bad"),
}


def prediction_blocks(
    predictions: Predictions,
    chosen: Mapping[str, Sequence[ChosenImage]],
    thresholds: Mapping[str, float],
    looking: Looking,
    boxes: Mapping[str, Sequence[Box]],
) -> List[Block]:
    """The best and the worst predictions, with pictures where the prepared data are at hand."""
    everything = [image for images in chosen.values() for image in images]
    if not everything:
        return [Text("No finding has both classes and numbers for probabilities: nothing is best or worst.", "warning")]
    seen = [image for image in everything if looking.has(predictions.file_names[image.row])]
    maps = looking.saliency([predictions.file_names[i.row] for i in seen], [i.column for i in seen])
    place = {image: position for position, image in enumerate(seen)}
    blocks: List[Block] = [
        Text(
            "Chosen by where an image ranks among all evaluated images for the same finding. Labels were not read from these "
            "pictures for this purpose: what looks like a wrong prediction may be a wrong label.",
            "note",
        )
    ]
    for reason in (looking.reason, looking.reason_no_model):
        if reason:
            blocks.append(Text(f"Without pictures: {reason}" if reason == looking.reason else reason, "warning"))
    for kind, images in chosen.items():
        title, what, tone = _STORIES[kind]
        if not images:
            blocks.append(Text(f"{title}: none."))
            continue
        blocks.append(Text(f"{title}: {what}."))
        cases = []
        for image in images:
            finding, name = predictions.findings[image.column], predictions.file_names[image.row]
            threshold = thresholds.get(finding, float("nan"))
            labels = [f for f, y in zip(predictions.findings, predictions.truth[image.row]) if y == 1]
            position = place.get(image)
            heat = (
                (None, None) if maps is None or position is None else (maps.gradient[position], maps.rollout[position])
            )
            lines = [
                f"probability {number(predictions.probability[image.row, image.column])} (threshold {number(threshold)}), "
                f"above {100 * image.rank:.0f} % of the images",
                f"labels: {', '.join(labels) or 'none'}",
            ]
            own = [box for box in boxes.get(file_name(name), ()) if box.finding == finding]
            cases.append(_case(finding, name, lines, looking, own, heat, tone))
        blocks.append(Cases(cases))
    return blocks


def _case(
    finding: str,
    name: str,
    lines: Sequence[str],
    looking: Looking,
    boxes: Sequence[Box],
    heat: Tuple[Optional[np.ndarray], Optional[np.ndarray]],
    tone: str,
) -> Case:
    pictures: List[Picture] = []
    if looking.has(name):
        pixels, rectangles = looking.pixels(name), [box.rectangle for box in boxes]
        pictures.append(Picture(gray_picture(pixels, rectangles), "image"))
        for caption, values in zip(("gradient-weighted", "rollout"), heat):
            if values is not None:
                pictures.append(Picture(heat_picture(pixels, values, rectangles), caption))
    return Case(finding, [file_name(name), *lines], pictures, tone)


def _hit(image: BoxedImage) -> bool:
    return image.gradient is not None and is_hit(image.gradient, image.boxes)
