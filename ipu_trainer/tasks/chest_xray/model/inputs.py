"""The ViT with one output a finding, and its inputs: augmentation, normalisation, one channel or three equal ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, PretrainedConfig, ViTConfig, ViTForImageClassification

from ipu_trainer.errors import UserError, user_input
from ipu_trainer.tasks.chest_xray.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from ipu_trainer.tasks.pretrained import load_pretrained
from ipu_trainer.training.acceleration.input_pipeline import constant

_NEXT_MOVE = "Give --model a ViT with its weights, such as google/vit-base-patch16-224-in21k."
TRAIN_AGAIN = "Train the run again into another folder."


def read_config(source: Union[str, Path], next_move: str = _NEXT_MOVE) -> ViTConfig:
    """config.json of a ViT's folder or Hub repository. Raises UserError for every other architecture."""
    try:
        values, _ = PretrainedConfig.get_config_dict(str(source))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{source} has no readable config.json ({reason}) {next_move}") from error
    kind = values.get("model_type")
    if kind != "vit":
        architectures = ", ".join(values.get("architectures") or []) or "no architecture named"
        raise UserError(
            f"{source} holds a model of model_type {kind} ({architectures}), and chest-xray trains ViTs (model_type vit): its "
            f"weights would not be loaded, and training would start from random ones. {next_move}"
        )
    config: ViTConfig = ViTConfig.from_dict(values)
    if config.num_channels not in (1, 3):
        raise UserError(
            f"{source}: num_channels is {config.num_channels} in its config.json, but X-rays have one channel of gray, which "
            f"models of 1 or 3 channels read. {next_move}"
        )
    return config


def load_model(source: str, findings: Sequence[str], prevalence: np.ndarray) -> Any:
    """A ViT with one output a finding, float32; a new head starts at each finding's prevalence.

    A checkpoint's head is kept if its outputs are these findings in this order. Raises UserError for a model that is no ViT or
    lacks weights.
    """
    before = read_config(source).id2label
    names = dict(enumerate(findings))
    model, new = load_pretrained(
        ViTForImageClassification,
        source,
        _NEXT_MOVE,
        num_labels=len(findings),
        id2label=names,
        label2id={name: position for position, name in names.items()},
        problem_type="multi_label_classification",
    )
    if "classifier.weight" not in new and [before[key] for key in sorted(before)] != list(findings):
        # The same number of outputs, but other findings.
        nn.init.trunc_normal_(model.classifier.weight, std=model.config.initializer_range)
        new = {"classifier.weight", "classifier.bias"}
    if "classifier.bias" in new:
        rate = torch.as_tensor(np.clip(prevalence, 0.005, 0.99), dtype=torch.float32)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.logit(rate))
    return model


def load_finished(run_dir: Path, config: Optional[ViTConfig] = None) -> Any:
    """The model in a run's folder, with its head. Raises UserError if tensors are missing."""
    config = config or read_config(run_dir, TRAIN_AGAIN)
    model, new = load_pretrained(ViTForImageClassification, str(run_dir), TRAIN_AGAIN, config=config)
    if new:
        raise UserError(f"{run_dir}: its weights lack {', '.join(sorted(new))}. {TRAIN_AGAIN}")
    return model


def both_sides(size: Union[int, Sequence[int]]) -> Tuple[int, int]:
    """(height, width) of a setting that may be a single number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def load_processor(model: str) -> Any:
    """The model's image processor, which is saved beside the weights to complete the model folder."""
    with user_input():
        return AutoImageProcessor.from_pretrained(model)


Samples = Union[Mapping[str, torch.Tensor], Sequence[Mapping[str, torch.Tensor]]]
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
