"""The evaluated images and what the model saw in them, ready to be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, PreparedChestXrays
from ipu_trainer.tasks.chest_xray.data.transforms import ChestXrayCollator, load_normalisation
from ipu_trainer.tasks.chest_xray.explain.boxes import Box, file_name
from ipu_trainer.tasks.chest_xray.explain.saliency import Saliency, load_for_saliency, saliency
from ipu_trainer.tasks.reporting.embedded_images import gray_picture, heat_picture
from ipu_trainer.tasks.reporting.html_document import Case, Picture

_IMAGES_AT_ONCE = 64
Heat = Tuple[Optional[np.ndarray], Optional[np.ndarray]]  # gradient-weighted and rollout, (rows, columns) each


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

    def heats(self, wanted: Sequence[Tuple[str, int]]) -> List[Heat]:
        """For each (file name, column of a finding) its maps; None where image or model are not at hand."""
        seen = [key for key in wanted if self.has(key[0])]
        maps = self.saliency([name for name, _ in seen], [column for _, column in seen])
        if maps is None:
            return [(None, None)] * len(wanted)
        found = {key: (maps.gradient[place], maps.rollout[place]) for place, key in enumerate(seen)}
        return [found.get(key, (None, None)) for key in wanted]

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


def case_of(
    finding: str,
    name: str,
    lines: Sequence[str],
    looking: Looking,
    boxes: Sequence[Box],
    heat: Heat,
    tone: str,
) -> Case:
    """One image with its picture, boxes and maps, as far as they are at hand."""
    pictures: List[Picture] = []
    if looking.has(name):
        pixels, rectangles = looking.pixels(name), [box.rectangle for box in boxes]
        pictures.append(Picture(gray_picture(pixels, rectangles), "image"))
        for caption, values in zip(("gradient-weighted", "rollout"), heat):
            if values is not None:
                pictures.append(Picture(heat_picture(pixels, values, rectangles), caption))
    return Case(finding, [file_name(name), *lines], pictures, tone)
