"""Augmentation of training images: rotation, zoom, shift, tone and erasing on the grayscale channel, a whole batch at a time.

The result is a function of (seed, epoch, sample) alone: the same on a CPU and on a GPU, in any batch, on any worker. The random
numbers come from a counter-based hash, so there is no generator whose state depends on the order of the samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
import torch.nn.functional as functional

from ipu_trainer.errors import UserError
from ipu_trainer.training.acceleration.input_pipeline import copy_to_device


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes of a training image. Ranges are symmetric; 0 switches a change off.

    scale, aspect, gamma: a factor of at most 1 + value, or its inverse. shift: fraction of the side. brightness: fraction of the
    gray range. contrast: relative, around the image's mean. erasing: probability of one gray rectangle. horizontal_flip: off
    by default, because the side of the heart is a finding (dextrocardia).
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
                raise UserError(f"augmentation {name} {value} must be from 0 (off) to {limit:g}.")


NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False)


def augment(
    pixels: torch.Tensor,
    epoch: torch.Tensor,
    index: torch.Tensor,
    augmentation: Augmentation,
    seed: int = 0,
    compute: Optional[Callable[[torch.Tensor, torch.Tensor, Augmentation], torch.Tensor]] = None,
) -> torch.Tensor:
    """Gray values in [0, 1], float32 (micro_batch, height, width), from uint8 pixels of that shape.

    epoch and index, int64 (micro_batch,), name the samples; the result depends on them and the seed alone. A batch of epoch -1
    is not for training and is not augmented. compute: `augment_images`, or its compiled form.
    """
    if augmentation == NO_AUGMENTATION or bool((epoch < 0).all()):
        return pixels.to(torch.float32) / 255.0
    # One host-to-device copy for all numbers: a copy of each would take as long.
    numbers = copy_to_device(torch.from_numpy(_drawn_changes(epoch, index, augmentation, seed)), pixels.device)
    return (compute or augment_images)(pixels, numbers, augmentation)


def _drawn_changes(epoch: torch.Tensor, index: torch.Tensor, a: Augmentation, seed: int) -> np.ndarray:
    """float32 (samples, 14): an affine map (6), contrast, brightness, gamma, and five in [0, 1) for the erased rectangle."""
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


def augment_images(pixels: torch.Tensor, numbers: torch.Tensor, a: Augmentation) -> torch.Tensor:
    """`augment` with the random numbers given, (samples, 14): tensor operations alone, on the tensors' device."""
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
    """Source coordinates of each pixel, (micro_batch, height, width, 2), for maps (micro_batch, 2, 3); sides from -1 to 1.

    Elementwise, because a GPU may compute torch's batched matrix product with ten bits (TF32).
    """
    y = (2 * torch.arange(height, device=affine.device, dtype=affine.dtype) + 1) / height - 1
    x = (2 * torch.arange(width, device=affine.device, dtype=affine.dtype) + 1) / width - 1
    matrix = affine[:, None, None]
    grid: torch.Tensor = x[:, None] * matrix[..., 0] + y[:, None, None] * matrix[..., 1] + matrix[..., 2]
    return grid


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
    """Fill rectangles of 10 to 35 % of a side, at random[:, :2] with sides random[:, 2:4], where random[:, 4] < probability."""
    height, width = gray.shape[1:]
    numbers = random[:, :, None, None]
    tall, wide = (0.1 + 0.25 * numbers[:, 2]) * height, (0.1 + 0.25 * numbers[:, 3]) * width
    top, left = numbers[:, 0] * (height - tall), numbers[:, 1] * (width - wide)
    y = torch.arange(height, device=gray.device)[None, :, None]
    x = torch.arange(width, device=gray.device)[None, None, :]
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide) & (numbers[:, 4] < probability)
    return torch.where(inside, fill.expand_as(gray), gray)
