"""From stored pixels to the model's inputs: augmentation, normalisation, one channel or three equal ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from ipu_trainer.tasks.chest_xray.model.classifier import both_sides, read_config
from ipu_trainer.training.acceleration.input_pipeline import constant

# Pillow's numbers, as preprocessor configs hold them.
_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


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

    @classmethod
    def from_processor(cls, processor: Any, size: int, resample: str, num_channels: int = 3) -> Normalisation:
        """Mean and std of the image processor of a model with num_channels.

        Raises UserError if the processor's size, filter or scale is not that of the stored pixels, or if it has means for
        another number of channels.
        """
        wanted = _processor_size(processor)
        if wanted is not None and wanted != (size, size):
            raise UserError(
                f"the model's preprocessor wants {wanted[0]} x {wanted[1]} pixels, the data is prepared at {size} x {size}. "
                f"Prepare it again with --size {wanted[0]}."
            )
        number = getattr(processor, "resample", None)
        name = resample if number is None else _RESAMPLE_NAMES.get(int(number), str(number))
        if name != resample:
            raise UserError(
                f"the model's preprocessor resizes with {name}, the data is prepared with {resample}. "
                f"Prepare it again with --resample {name}."
            )
        factor = float(getattr(processor, "rescale_factor", 1 / 255))
        if getattr(processor, "do_rescale", True) and not math.isclose(factor, 1 / 255, rel_tol=1e-3):
            raise UserError(
                f"the model's preprocessor rescales by {factor}, not by 1/255: such a model is not supported."
            )
        if not getattr(processor, "do_normalize", True):
            return cls((0.0,) * num_channels, (1.0,) * num_channels)
        return cls(*(_by_channel(processor, name, num_channels) for name in ("image_mean", "image_std")))

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

    def __call__(
        self, samples: Union[Mapping[str, torch.Tensor], Sequence[Mapping[str, torch.Tensor]]]
    ) -> Dict[str, torch.Tensor]:
        batch = collate_stored(samples)
        gray = augment(batch["pixels"], batch["epoch"], batch["index"], self.augmentation, self.seed)
        return {"pixel_values": self.normalisation(gray), "labels": batch["labels"]}


def collate_stored(
    samples: Union[Mapping[str, torch.Tensor], Sequence[Mapping[str, torch.Tensor]]],
) -> Dict[str, torch.Tensor]:
    """A batch of ChestXrayDataset as it is, or a list of its samples stacked to one: uint8 pixels, no augmentation."""
    if isinstance(samples, Mapping):
        return dict(samples)
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def load_normalisation(model: Union[str, Path], size: int, resample: str) -> Normalisation:
    """Normalisation from the preprocessor config of a model folder or Hub repository.

    Raises UserError if the model is no ViT, or its input size or filter is not that of the stored pixels.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model} has no usable preprocessor_config.json ({error}). Mean and std are never assumed: "
            "add the file that the model was trained with."
        ) from error
    config = read_config(model)
    normalisation = Normalisation.from_processor(processor, size, resample, config.num_channels)
    wanted = both_sides(config.image_size)
    if wanted != (size, size):
        raise UserError(
            f"{model} reads images of {wanted[0]} x {wanted[1]} pixels (image_size in its config.json), the data is prepared at "
            f"{size} x {size}. Prepare it again with --size {wanted[0]}, and see that preprocessor_config.json has that size too."
        )
    return normalisation


def _processor_size(processor: Any) -> Optional[Tuple[int, int]]:
    if not getattr(processor, "do_resize", True):
        return None
    size = processor.size
    if isinstance(size, int):
        return size, size
    values: Dict[str, Any] = dict(size)
    if values.get("height") and values.get("width"):
        return int(values["height"]), int(values["width"])
    edge = values.get("shortest_edge")
    return None if edge is None else (int(edge), int(edge))


def _by_channel(processor: Any, name: str, num_channels: int) -> Tuple[float, ...]:
    """image_mean or image_std for each channel. A model of one channel may have three equal numbers."""
    values = getattr(processor, name)
    numbers: List[float] = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
    if isinstance(values, (int, float)) or (num_channels == 1 and len(set(numbers)) == 1):
        return (numbers[0],) * num_channels
    if len(numbers) != num_channels:
        raise UserError(
            f"the model's preprocessor has {name} {numbers}, but the model reads {num_channels} channel"
            f"{'s' * (num_channels > 1)} (num_channels in its config.json). Give the numbers that it was trained with there."
        )
    return tuple(numbers)
