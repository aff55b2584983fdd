"""A model's inputs: pixels of the store, whole images of one size, augmented and normalised as its checkpoint says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from ipu_trainer.tasks.chest_xray.model.architectures import (
    image_size,
    num_channels,
    read_config,
)
from ipu_trainer.tasks.chest_xray.model.image_processor import (
    crops,
    input_size,
    load_processor,
    mean_and_std,
    resample_name,
)
from ipu_trainer.training.acceleration.input_pipeline import constant

Samples = Union[Mapping[str, torch.Tensor], Sequence[Mapping[str, torch.Tensor]]]


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std for each input channel of the model: one, or three that are equal before normalisation."""

    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must be three numbers each, or one, std above 0.")

    @property
    def num_channels(self) -> int:
        return len(self.mean)

    @property
    def values(self) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
        """(mean, std)"""
        return self.mean, self.std

    @classmethod
    def from_processor(
        cls, processor: Any, size: int, resample: str, num_channels: int = 3, any_size: bool = False
    ) -> Normalisation:
        """Mean and std of the image processor of a model with num_channels.

        Raises UserError if the processor's size (unless any_size), filter or scale is not that of the stored pixels, or if it
        has means for another number of channels.
        """
        wanted = input_size(processor)
        if wanted is not None and wanted != (size, size) and not any_size:
            raise UserError(
                f"the model's preprocessor wants {wanted[0]} x {wanted[1]} pixels, the data is prepared at {size} x {size}. "
                f"Prepare it again with --size {wanted[0]}."
            )
        name = resample_name(processor) or resample
        if name != resample:
            raise UserError(
                f"the model's preprocessor resizes with {name}, the data is prepared with {resample}. "
                f"Prepare it again with --resample {name}."
            )
        return cls(*mean_and_std(processor, num_channels))

    def __call__(self, gray: torch.Tensor) -> torch.Tensor:
        """Gray values in [0, 1], (micro_batch, height, width), to float32 (micro_batch, channels, height, width)."""
        mean, std = constant([self.mean, self.std], gray).view(2, 1, self.num_channels, 1, 1)
        normalised: torch.Tensor = (gray[:, None] - mean) / std
        return normalised


class ChestXrayCollator:
    """Makes the model's inputs from a batch of ChestXrayDataset or a list of its samples.

    Returns {"pixel_values": float32 (micro_batch, 3, height, width), "labels": float32 (micro_batch, num_findings)}.
    """

    def __init__(
        self, normalisation: Normalisation, augmentation: Optional[Augmentation] = None, seed: int = 0
    ) -> None:
        self.normalisation = normalisation
        self.augmentation = augmentation or NO_AUGMENTATION
        self.seed = seed

    def __call__(self, samples: Samples) -> Dict[str, torch.Tensor]:
        batch = collate_stored(samples)
        gray = augment(batch["pixels"], batch["epoch"], batch["index"], self.augmentation, self.seed)
        return {"pixel_values": self.normalisation(gray), "labels": batch["labels"]}


def collate_stored(samples: Samples) -> Dict[str, torch.Tensor]:
    """A batch of ChestXrayDataset as it is, or a list of its samples stacked to one: uint8 pixels, no augmentation."""
    if isinstance(samples, Mapping):
        return dict(samples)
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def load_normalisation(model: Union[str, Path], size: int, resample: str) -> Normalisation:
    """Normalisation from the preprocessor config of a finished run, or of a model that is used as it is.

    Raises UserError if it is no image classifier, or its input size or filter is not that of the stored pixels.
    """
    processor, config = load_processor(model), read_config(model)
    normalisation = Normalisation.from_processor(processor, size, resample, num_channels(config))
    wanted = image_size(config)
    if wanted not in (None, (size, size)):
        raise UserError(
            f"{model} reads images of {wanted[0]} x {wanted[1]} pixels (image_size in its config.json), the data is prepared at "
            f"{size} x {size}. Prepare it again with --size {wanted[0]}, and see that preprocessor_config.json has that size too."
        )
    return normalisation


def starting_normalisation(checkpoint: str, size: int, resample: str) -> Tuple[Normalisation, Tuple[str, ...]]:
    """(normalisation, notes) for a training that begins with a checkpoint, whatever size the checkpoint was made for.

    notes: how the images differ from those of the checkpoint's preprocessor. Raises UserError for another filter than the
    stored pixels'.
    """
    processor = load_processor(checkpoint)
    normalisation = Normalisation.from_processor(processor, size, resample, num_channels(read_config(checkpoint)), True)
    wanted = input_size(processor)
    notes = []
    if wanted not in (None, (size, size)):
        notes.append(f"images of {size} x {size} pixels, where its preprocessor makes {wanted[0]} x {wanted[1]}")
    if crops(processor):
        notes.append(
            "whole images are resized, without the crop of its preprocessor; the run's preprocessor says the same"
        )
    return normalisation, tuple(notes)
