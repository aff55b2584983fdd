"""From stored pixels to what the model reads: augmentation, normalisation, grayscale to RGB, a whole batch at a time.

Augmentation works on the one gray channel and is a function of (seed, epoch, sample) alone: the same picture on a CPU and
on a GPU, in any batch, on any worker. Numbers come from a counter-based hash, not from a generator that someone advances.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as functional

from ipu_trainer.tasks.chest_xray.model.classifier import both_sides, read_config
from ipu_trainer.training.acceleration.input_pipeline import constant, copy_to_device

# Pillow's numbers, as preprocessor configs hold them.
_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std for each channel that the model reads: three alike, or one."""

    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, or one, std above 0.")

    @property
    def num_channels(self) -> int:
        return len(self.mean)

    @classmethod
    def from_processor(cls, processor: Any, size: int, resample: str, num_channels: int = 3) -> Normalisation:
        """Mean and std of the image processor of a model with num_channels.

        Raises ValueError if the processor wants other pixels than those stored: another size, filter or scale; or has means
        for another number of channels.
        """
        wanted = _processor_size(processor)
        if wanted is not None and wanted != (size, size):
            raise ValueError(
                f"the model's preprocessor wants {wanted[0]} x {wanted[1]} pixels, the data is prepared at {size} x {size}. "
                f"Prepare it again with --size {wanted[0]}."
            )
        number = getattr(processor, "resample", None)
        name = resample if number is None else _RESAMPLE_NAMES.get(int(number), str(number))
        if name != resample:
            raise ValueError(
                f"the model's preprocessor resizes with {name}, the data is prepared with {resample}. "
                f"Prepare it again with --resample {name}."
            )
        factor = float(getattr(processor, "rescale_factor", 1 / 255))
        if getattr(processor, "do_rescale", True) and not math.isclose(factor, 1 / 255, rel_tol=1e-3):
            raise ValueError(
                f"the model's preprocessor rescales by {factor}, not by 1/255: such a model is not supported."
            )
        if not getattr(processor, "do_normalize", True):
            return cls((0.0,) * num_channels, (1.0,) * num_channels)
        return cls(*(_by_channel(processor, name, num_channels) for name in ("image_mean", "image_std")))

    def __call__(self, gray: torch.Tensor) -> torch.Tensor:
        """float32 (micro_batch, channels, height, width) of gray values in [0, 1], (micro_batch, height, width)."""
        mean, std = constant([self.mean, self.std], gray).view(2, 1, self.num_channels, 1, 1)
        normalised: torch.Tensor = (gray[:, None] - mean) / std
        return normalised


@dataclass(frozen=True)
class Augmentation:
    """How far a training picture may be changed. Ranges are symmetric; 0 switches one off.

    scale, aspect, gamma: a factor up to 1 + value or its inverse · shift: share of the side · brightness: share of the
    gray range · contrast: relative, around the picture's mean · erasing: probability of one gray rectangle ·
    horizontal_flip: off by default, since the heart's side is a finding (dextrocardia).
    """

    rotation_degrees: float = 10.0
    scale: float = 0.1
    aspect: float = 0.05
    shift: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.2
    erasing: float = 0.0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        limits = {"rotation_degrees": 180.0, "shift": 0.5, "brightness": 1.0, "contrast": 1.0, "erasing": 1.0}
        for name, value in asdict(self).items():
            if name == "horizontal_flip":
                continue
            limit = limits.get(name, 4.0)
            if not 0.0 <= value <= limit:
                raise ValueError(f"augmentation {name} {value} must be from 0 (off) to {limit:g}.")


NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False)


def augment(
    pixels: torch.Tensor,
    epoch: torch.Tensor,
    index: torch.Tensor,
    augmentation: Augmentation,
    seed: int = 0,
    compute: Optional[Callable[[torch.Tensor, torch.Tensor, Augmentation], torch.Tensor]] = None,
) -> torch.Tensor:
    """Gray values in [0, 1], float32 (micro_batch, height, width), of uint8 pixels of that shape.

    epoch and index, int64 (micro_batch,), name the samples; they and the seed decide everything. A batch of epoch -1 is
    not of training and stays as it is. compute: `change_pictures`, or what was compiled of it.
    """
    if augmentation == NO_AUGMENTATION or bool((epoch < 0).all()):
        return pixels.to(torch.float32) / 255.0
    # All numbers travel at once: each copy of its own would cost as much.
    numbers = copy_to_device(torch.from_numpy(_drawn_changes(epoch, index, augmentation, seed)), pixels.device)
    return (compute or change_pictures)(pixels, numbers, augmentation)


def _drawn_changes(epoch: torch.Tensor, index: torch.Tensor, a: Augmentation, seed: int) -> np.ndarray:
    """float32 (samples, 14): six of the affine map, contrast, brightness, gamma, and five in [0, 1) for the rectangle."""
    random = _uniform(seed, epoch.cpu().numpy(), index.cpu().numpy(), 13)
    signed = {name: 2.0 * random[:, position] - 1.0 for position, name in enumerate(_SIGNED)}
    angle = np.deg2rad(a.rotation_degrees) * signed["angle"]
    height_factor = np.exp(math.log1p(a.scale) * signed["scale"])
    width_factor = height_factor * np.exp(math.log1p(a.aspect) * signed["aspect"])
    if a.horizontal_flip:
        width_factor = np.where(random[:, 8] < 0.5, -width_factor, width_factor)
    # The grid runs from -1 to 1, so a shift by a share of the side is twice that share.
    x_shift, y_shift = 2.0 * a.shift * signed["x"], 2.0 * a.shift * signed["y"]
    affine = np.stack(
        [
            np.stack([np.cos(angle) * width_factor, -np.sin(angle) * height_factor, x_shift], axis=1),
            np.stack([np.sin(angle) * width_factor, np.cos(angle) * height_factor, y_shift], axis=1),
        ],
        axis=1,
    )
    tones = np.stack(
        [
            1.0 + a.contrast * signed["contrast"],
            a.brightness * signed["brightness"],
            np.exp(math.log1p(a.gamma) * signed["gamma"]),
        ],
        axis=1,
    )
    return np.concatenate([affine.reshape(-1, 6), tones, random[:, 8:]], axis=1).astype(np.float32)


def change_pictures(pixels: torch.Tensor, numbers: torch.Tensor, a: Augmentation) -> torch.Tensor:
    """`augment` for drawn numbers, (samples, 14): tensors alone, on the device where they are."""
    gray = pixels.to(torch.float32) / 255.0
    if a.rotation_degrees or a.scale or a.aspect or a.shift or a.horizontal_flip:
        grid = _affine_grid(numbers[:, :6].view(-1, 2, 3), gray.shape[1], gray.shape[2])
        gray = functional.grid_sample(gray[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
    contrast, brightness, gamma = numbers[:, 6:9].T[:, :, None, None]
    mean = gray.mean(dim=(1, 2), keepdim=True)
    gray = ((gray - mean) * contrast + mean + brightness).clamp_(0.0, 1.0)
    if a.gamma:
        gray = gray.pow(gamma)
    if a.erasing:
        gray = _erase(gray, mean, numbers[:, 9:], a.erasing)
    return gray


def _affine_grid(affine: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(micro_batch, height, width, 2) where each pixel comes from, of (micro_batch, 2, 3), sides from -1 to 1.

    By elements, not as torch's batched product of three columns, which a GPU may round to ten bits.
    """
    y = (2 * torch.arange(height, device=affine.device, dtype=affine.dtype) + 1) / height - 1
    x = (2 * torch.arange(width, device=affine.device, dtype=affine.dtype) + 1) / width - 1
    matrix = affine[:, None, None]
    grid: torch.Tensor = x[:, None] * matrix[..., 0] + y[:, None, None] * matrix[..., 1] + matrix[..., 2]
    return grid


class ChestXrayCollator:
    """Batches of a ChestXrayDataset, or lists of its samples, as the model's inputs.

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
        batch = samples if isinstance(samples, Mapping) else stack(samples)
        gray = augment(batch["pixels"], batch["epoch"], batch["index"], self.augmentation, self.seed)
        return {"pixel_values": self.normalisation(gray), "labels": batch["labels"]}


def load_normalisation(model: Union[str, Path], size: int, resample: str) -> Normalisation:
    """The normalisation of the model folder's or Hub repository's own preprocessor config, for the channels that it reads.

    Raises ValueError if the model is no ViT, or wants other pixels than those stored.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model} has no usable preprocessor_config.json ({error}). Mean and std are never assumed: "
            "add the file that the model was trained with."
        ) from error
    config = read_config(model)
    normalisation = Normalisation.from_processor(processor, size, resample, config.num_channels)
    wanted = both_sides(config.image_size)
    if wanted != (size, size):
        raise ValueError(
            f"{model} reads images of {wanted[0]} x {wanted[1]} pixels (image_size in its config.json), the data is prepared at "
            f"{size} x {size}. Prepare it again with --size {wanted[0]}, and see that preprocessor_config.json has that size too."
        )
    return normalisation


_SIGNED = ("angle", "scale", "aspect", "x", "y", "brightness", "contrast", "gamma")


def _uniform(seed: int, epoch: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """float64 (samples, count) in [0, 1): splitmix64 (Steele et al., OOPSLA 2014) over a counter of seed, epoch, index."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed & (2**64 - 1)) + np.uint64(0x9E3779B97F4A7C15))
        state = _mix(state ^ _mix(epoch.astype(np.uint64) + np.uint64(0xD1B54A32D192ED03)))
        state = _mix(state ^ _mix(index.astype(np.uint64) + np.uint64(0x8CB92BA72F3D8DD7)))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits: np.ndarray = _mix(state[:, None] + steps[None, :]) >> np.uint64(11)
    return np.asarray(bits.astype(np.float64) / 2.0**53)


def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _erase(gray: torch.Tensor, fill: torch.Tensor, random: torch.Tensor, probability: float) -> torch.Tensor:
    """Gray rectangles of 10 to 35 % of a side, at random[:, 0:2] with sides random[:, 2:4], where random[:, 4] says so."""
    height, width = gray.shape[1:]
    numbers = random[:, :, None, None]
    tall, wide = (0.1 + 0.25 * numbers[:, 2]) * height, (0.1 + 0.25 * numbers[:, 3]) * width
    top, left = numbers[:, 0] * (height - tall), numbers[:, 1] * (width - wide)
    y = torch.arange(height, device=gray.device)[None, :, None]
    x = torch.arange(width, device=gray.device)[None, None, :]
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide) & (numbers[:, 4] < probability)
    return torch.where(inside, fill.expand_as(gray), gray)


def stack(samples: Sequence[Mapping[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


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
    """image_mean or image_std for each channel. Three equal numbers serve a model of one channel."""
    values = getattr(processor, name)
    numbers: List[float] = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
    if isinstance(values, (int, float)) or (num_channels == 1 and len(set(numbers)) == 1):
        return (numbers[0],) * num_channels
    if len(numbers) != num_channels:
        raise ValueError(
            f"the model's preprocessor has {name} {numbers}, but the model reads {num_channels} channel"
            f"{'s' * (num_channels > 1)} (num_channels in its config.json). Give the numbers that it was trained with there."
        )
    return tuple(numbers)
