"""The images of an evaluation by file name, with the model's saliency maps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, PreparedChestXrays
from ipu_trainer.tasks.chest_xray.data.text_files import base_name
from ipu_trainer.tasks.chest_xray.explain.saliency import Saliency, load_for_saliency, saliency
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, load_normalisation

_IMAGES_AT_ONCE = 64


class SaliencyMaps(NamedTuple):
    """Maps of one image and finding, float32 (rows, columns) each, one cell a patch."""

    gradient: np.ndarray
    rollout: np.ndarray


class EvaluatedImages:
    """Pixels and saliency maps of the evaluated images.

    Without the prepared data there are no images, and why_no_images says so; without the model there are no maps, and
    why_no_maps says so. all_images: those of every split.
    """

    def __init__(
        self,
        evaluated: Optional[ChestXrayDataset] = None,
        model: Any = None,
        collator: Optional[ChestXrayCollator] = None,
        all_images: Optional[ChestXrayDataset] = None,
        why_no_images: str = "",
        why_no_maps: str = "",
    ) -> None:
        self.evaluated, self.model, self.collator, self.all_images = evaluated, model, collator, all_images
        self.why_no_images, self.why_no_maps = why_no_images, why_no_maps
        names = [] if evaluated is None else evaluated.table["file_name"]
        self._position = {name: position for position, name in enumerate(names)}

    @classmethod
    def of_run(
        cls, run_dir: Path, findings: Sequence[str], prepared: PreparedChestXrays, split: str
    ) -> EvaluatedImages:
        evaluated, all_images = prepared.split(split), prepared.split("all")
        try:
            normalisation = load_normalisation(run_dir, prepared.size, prepared.manifest["resample"])
            model = load_for_saliency(run_dir, findings)
        except (ValueError, OSError) as error:
            return cls(evaluated, all_images=all_images, why_no_maps=f"No saliency maps: {error}")
        return cls(evaluated, model, ChestXrayCollator(normalisation), all_images)

    def names_in_other_splits(self) -> FrozenSet[str]:
        """File names, without folders, of the prepared images that were not evaluated."""
        if self.all_images is None or self.evaluated is None:
            return frozenset()
        names = {base_name(name) for name in self.all_images.table["file_name"]}
        return frozenset(names - {base_name(name) for name in self.evaluated.table["file_name"]})

    def __contains__(self, name: object) -> bool:
        return name in self._position

    def pixels(self, name: str) -> np.ndarray:
        """uint8 (size, size)."""
        assert self.evaluated is not None
        return np.asarray(self.evaluated[self._position[name]]["pixels"])

    def maps(self, wanted: Sequence[Tuple[str, int]]) -> List[Optional[SaliencyMaps]]:
        """The maps of each (file name, column of a finding); None where the image or the model is missing."""
        known = [key for key in wanted if key[0] in self]
        found = self.saliency([name for name, _ in known], [column for _, column in known])
        if found is None:
            return [None] * len(wanted)
        maps = {key: SaliencyMaps(found.gradient[row], found.rollout[row]) for row, key in enumerate(known)}
        return [maps.get(key) for key in wanted]

    def saliency(self, names: Sequence[str], columns: Sequence[int]) -> Optional[Saliency]:
        """The maps of all these images, each for the finding in its entry of columns; None without images or a model."""
        if self.model is None or self.collator is None or self.evaluated is None or not names:
            return None
        chunks = []
        for start in range(0, len(names), _IMAGES_AT_ONCE):
            keys = [self._position[name] for name in names[start : start + _IMAGES_AT_ONCE]]
            pixel_values = self.collator(self.evaluated.__getitems__(keys))["pixel_values"]
            chunks.append(saliency(self.model, pixel_values, columns[start : start + _IMAGES_AT_ONCE]))
        return Saliency(np.concatenate([c.rollout for c in chunks]), np.concatenate([c.gradient for c in chunks]))
