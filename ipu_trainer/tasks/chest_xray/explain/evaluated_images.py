"""The images of an evaluation: saliency maps of a ViT, and the choice of those that a report shows.

Rollout (Abnar and Zuidema, ACL 2020) multiplies the layers' attention, with the identity added for the residual connections:
one map an image, the same for every finding. Gradient-weighted attention (Chefer et al., ICCV 2021) keeps the attention that
raises the logit of a finding: one map a finding. Both show what the model used, not what is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch

from ipu_trainer.compat.transformers_training import use_eager_attention
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, PreparedChestXrays
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.data.text_files import base_name
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Predictions
from ipu_trainer.tasks.chest_xray.model.inputs import (
    TRAIN_AGAIN,
    ChestXrayCollator,
    both_sides,
    load_finished,
    load_normalisation,
    read_config,
)

_IMAGES_A_PASS = 8


@dataclass(frozen=True)
class Saliency:
    """float32 (num_images, rows, columns) each; one cell a patch."""

    rollout: np.ndarray
    gradient: np.ndarray


def load_for_saliency(run_dir: Path, findings: Sequence[str]) -> Any:
    """The run's model with eager attention, in evaluation mode. Raises UserError if it is no ViT with these outputs."""
    config = read_config(run_dir, TRAIN_AGAIN)
    if config.num_labels != len(findings):
        raise UserError(
            f"the model in {run_dir} has {config.num_labels} outputs for {len(findings)} findings, so it belongs to another run."
        )
    use_eager_attention(config)  # other implementations do not compute attention probabilities as tensors
    model = load_finished(run_dir, config)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def saliency(model: Any, pixel_values: torch.Tensor, columns: Sequence[int]) -> Saliency:
    """Maps of pixel_values float32 (num_images, channels, height, width), each for the output in its entry of columns."""
    size, patch = both_sides(model.config.image_size), both_sides(model.config.patch_size)
    rows, cols = size[0] // patch[0], size[1] // patch[1]
    rollouts: List[np.ndarray] = []
    gradients: List[np.ndarray] = []
    for start in range(0, len(pixel_values), _IMAGES_A_PASS):
        part = pixel_values[start : start + _IMAGES_A_PASS].to(model.device)
        with torch.enable_grad():
            output = model(pixel_values=part, output_attentions=True)
            wanted = torch.as_tensor(list(columns[start : start + len(part)]), device=part.device)
            attentions = list(output.attentions)  # (images, heads, tokens, tokens) a layer
            chosen = output.logits.gather(1, wanted[:, None]).sum()
            attention_gradients = torch.autograd.grad(chosen, attentions)
        with torch.no_grad():
            rollouts.append(_to_grid(_rollout(attentions), rows, cols))
            gradients.append(_to_grid(_weighted(attentions, attention_gradients), rows, cols))
    empty = np.zeros((0, rows, cols), dtype=np.float32)
    return Saliency(np.concatenate([empty, *rollouts]), np.concatenate([empty, *gradients]))


def _rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """(images, tokens): the contribution of each token to the class token of the last layer."""
    total = _identity(attentions[0])
    for attention in attentions:
        total = (0.5 * attention.mean(dim=1) + 0.5 * _identity(attention)) @ total
    return total[:, 0]


def _weighted(attentions: Sequence[torch.Tensor], attention_gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    total = _identity(attentions[0])
    for attention, gradient in zip(attentions, attention_gradients):
        total = total + (attention * gradient).clamp(min=0).mean(dim=1) @ total
    return total[:, 0]


def _identity(attention: torch.Tensor) -> torch.Tensor:
    return torch.eye(attention.shape[-1], device=attention.device)[None]


def _to_grid(tokens: torch.Tensor, rows: int, cols: int) -> np.ndarray:
    """The patches of (images, tokens), without the class token, as (images, rows, cols)."""
    patches = tokens[:, tokens.shape[1] - rows * cols :]
    return np.asarray(patches.reshape(-1, rows, cols).float().cpu().numpy())


_IMAGES_AT_ONCE = 64


class SaliencyMaps(NamedTuple):
    """Maps of one image and finding, float32 (rows, columns) each, one cell a patch."""

    gradient: np.ndarray
    rollout: np.ndarray


@dataclass(eq=False)
class EvaluatedImages:
    """Pixels and saliency maps of the evaluated images.

    Without the prepared data there are no images, and why_no_images says so; without the model there are no maps, and
    why_no_maps says so. all_images: those of every split.
    """

    evaluated: Optional[ChestXrayDataset] = None
    model: Any = None
    collator: Optional[ChestXrayCollator] = None
    all_images: Optional[ChestXrayDataset] = None
    why_no_images: str = ""
    why_no_maps: str = ""

    def __post_init__(self) -> None:
        names = [] if self.evaluated is None else self.evaluated.table["file_name"]
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


KINDS = ("found", "missed", "false alarm")


@dataclass(frozen=True)
class ExampleImage:
    """One image and finding. rank: the fraction of the other images with a lower probability of the finding."""

    row: int
    column: int
    rank: float


def choose_images(predictions: Predictions, each: int = 6, each_finding: int = 2) -> Dict[str, List[ExampleImage]]:
    """At most `each` images of each of KINDS, no image twice, at most `each_finding` of one finding.

    Images are compared by their rank for the same finding, because probabilities of rare findings are small: "found" are the
    positives of highest rank, "missed" those of lowest rank, "false alarm" the negatives of highest rank.
    """
    positive: List[ExampleImage] = []
    negative: List[ExampleImage] = []
    for column, name in enumerate(predictions.findings):
        score, y = predictions.probability[:, column], predictions.truth[:, column]
        if name == NO_FINDING or len(score) < 2 or not np.isfinite(score).all() or not np.isin([0, 1], y).all():
            continue
        ordered = np.sort(score)
        rank = np.searchsorted(ordered, score, side="left") / (len(score) - 1)
        by_rank = np.argsort(rank, kind="stable")
        ups, downs = [i for i in by_rank if y[i] == 1], [i for i in by_rank if y[i] == 0]
        # Only the ends can be chosen.
        positive += [ExampleImage(int(i), column, float(rank[i])) for i in {*ups[:each], *ups[-each:]}]
        negative += [ExampleImage(int(i), column, float(rank[i])) for i in downs[-each:]]
    taken: Set[int] = set()

    def surest(chosen: ExampleImage) -> Tuple[float, float, int, int]:
        probability = float(predictions.probability[chosen.row, chosen.column])
        return -chosen.rank, -probability, chosen.column, chosen.row

    orders = {
        "found": sorted((c for c in positive if c.rank >= 0.5), key=surest),
        "missed": sorted((c for c in positive if c.rank < 0.5), key=surest, reverse=True),
        "false alarm": sorted((c for c in negative if c.rank >= 0.5), key=surest),
    }
    return {kind: _take(orders[kind], each, each_finding, taken) for kind in KINDS}


def _take(candidates: Sequence[ExampleImage], each: int, each_finding: int, taken: Set[int]) -> List[ExampleImage]:
    chosen: List[ExampleImage] = []
    for candidate in candidates:
        same = sum(other.column == candidate.column for other in chosen)
        if candidate.row not in taken and same < each_finding and len(chosen) < each:
            chosen.append(candidate)
            taken.add(candidate.row)
    return chosen
