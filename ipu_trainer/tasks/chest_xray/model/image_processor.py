"""A checkpoint's image processor, and the one of a run, which describes what training did: whole images resized to one size.

Checkpoints take the shorter side and crop (ConvNeXt, ResNet, DINOv2), resize to a square (ViT), or are timm's, whose config.json
has the numbers. The run's processor works in pipeline("image-classification") and gives it the pixels of training.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from transformers import AutoImageProcessor, ViTImageProcessor

from ipu_trainer.errors import UserError, first_line
from ipu_trainer.json_files import check_shape, read_json
from ipu_trainer.tasks.chest_xray.model.architectures import is_timm, read_values

# Pillow's numbers, as preprocessor configs hold them.
_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESAMPLE_NUMBERS = {name: number for number, name in _RESAMPLE_NAMES.items()}
_NEVER_ASSUMED = "Mean and std are never assumed: add the file that the model was trained with."
_SIZE = (int, {str: (int, None)}, [int])
_PROCESSOR = {
    "do_resize?": bool,
    "do_rescale?": bool,
    "do_normalize?": bool,
    "do_center_crop?": (bool, None),
    "size?": (*_SIZE, None),
    "crop_size?": (*_SIZE, None),
    "resample?": (int, None),
    "rescale_factor?": float,
    "rescale_offset?": bool,
    "include_top?": bool,
    "image_mean?": (float, [float]),
    "image_std?": (float, [float]),
}
_TIMM = {
    "input_size": [int],
    "interpolation": str,
    "mean": [float],
    "std": [float],
    "crop_mode?": (str, None),
    "crop_pct?": (float, None),
}


def load_processor(source: Union[str, Path]) -> Any:
    """The image processor of a model folder or Hub repository. Raises UserError where there is none that says mean and std."""
    values, file = read_values(source), Path(source) / "preprocessor_config.json"
    if is_timm(values):
        check_shape(
            values["pretrained_cfg"], _TIMM, f"pretrained_cfg of {Path(source) / 'config.json'}", _NEVER_ASSUMED
        )
        return _timm_processor(values["pretrained_cfg"])
    if file.is_file():
        read_json(file, _PROCESSOR, _NEVER_ASSUMED)
    try:
        return AutoImageProcessor.from_pretrained(str(source))
    except Exception as error:  # whatever the class that the file names raises for its values
        raise UserError(
            f"{source} has no usable preprocessor_config.json ({first_line(error)}). {_NEVER_ASSUMED}"
        ) from error


def write_processor(
    run_dir: Path, source: str, size: int, resample: str, mean: Tuple[float, ...], std: Tuple[float, ...]
) -> None:
    """Complete a run's folder with preprocessor_config.json: the checkpoint's, where it does what training did, or a new one.

    A model of timm has it in its config.json (input_size.py), which is what Transformers reads.
    """
    if is_timm(read_values(source)):
        return
    processor = load_processor(source)
    if not resizes_whole_images(processor, size):
        processor = ViTImageProcessor(
            size={"height": size, "width": size},
            resample=_RESAMPLE_NUMBERS[resample],
            image_mean=list(mean),
            image_std=list(std),
        )
    processor.save_pretrained(run_dir)


def resizes_whole_images(processor: Any, size: int) -> bool:
    """Whether the processor resizes every image to size x size, without a crop, and then only rescales and normalises."""
    is_plain = type(processor).__name__.startswith("ViTImageProcessor") and getattr(processor, "do_resize", True)
    return bool(is_plain) and input_size(processor) == (size, size) and not crops(processor)


def crops(processor: Any) -> bool:
    """Whether it cuts off a part of an image that is not square, or the border of every image."""
    return bool(getattr(processor, "do_center_crop", False)) or "shortest_edge" in _values(processor.size)


def input_size(processor: Any) -> Optional[Tuple[int, int]]:
    """(height, width) that a model gets from the processor; None if it keeps the size of each image."""
    if getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None):
        crop = _values(processor.crop_size)
        return int(crop["height"]), int(crop["width"])
    if not getattr(processor, "do_resize", True):
        return None
    values = _values(processor.size)
    if values.get("height") and values.get("width"):
        return int(values["height"]), int(values["width"])
    edge = values.get("shortest_edge")
    return None if edge is None else (int(edge), int(edge))


def resample_name(processor: Any) -> Optional[str]:
    """Its filter; None where it names none."""
    number = getattr(processor, "resample", None)
    return None if number is None else _RESAMPLE_NAMES.get(int(number), str(number))


def mean_and_std(processor: Any, num_channels: int) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Of (pixel / 255 - mean) / std, for each channel. Raises UserError for another scale or number of channels."""
    factor = float(getattr(processor, "rescale_factor", 1 / 255))
    if getattr(processor, "do_rescale", True) and not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(f"the model's preprocessor rescales by {factor}, not by 1/255: such a model is not supported.")
    if getattr(processor, "rescale_offset", False):
        raise UserError("the model's preprocessor has rescale_offset: such a model is not supported.")
    if not getattr(processor, "do_normalize", True):
        return (0.0,) * num_channels, (1.0,) * num_channels
    mean, std = (_by_channel(processor, name, num_channels) for name in ("image_mean", "image_std"))
    if getattr(processor, "include_top", False):  # EfficientNet's divides by std a second time
        std = tuple(value * value for value in std)
    return mean, std


def _timm_processor(settings: Dict[str, Any]) -> ViTImageProcessor:
    """Size, filter, mean and std of a model of timm, and whether its preprocessor crops; TimmWrapperImageProcessor does it."""
    _, height, width = settings["input_size"]
    whole = settings.get("crop_mode") == "squash" and settings.get("crop_pct") == 1.0
    return ViTImageProcessor(
        size={"height": int(height), "width": int(width)},
        resample=_RESAMPLE_NUMBERS[settings["interpolation"]],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
        do_center_crop=not whole,
    )


def _values(size: Any) -> Dict[str, Any]:
    """height and width of a size that may be a single number; only what is set."""
    values = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    return {name: value for name, value in values.items() if value}


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
