"""Which models the task takes: Transformers' image classifiers, and timm's through its wrapper; config.json alone decides.

Rows below hold what neither a config nor a class says. Each architecture of docs/models.md is tested; others of the same
interface are accepted too, and a trial forward pass at loading (checkpoint.py) refuses those that cannot work.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PretrainedConfig

from ipu_trainer.errors import MissingFileError, UserError, first_line
from ipu_trainer.tasks.pretrained import config_values, make_config
from ipu_trainer.training.finetuning.stochastic_depth import can_skip_layers, own_drop_path

NEXT_MOVE = (
    "Give --model an image model with its weights, such as google/vit-base-patch16-224-in21k or microsoft/rad-dino."
)
TIMM = "timm_wrapper"
# The first release of Transformers with a classifier of the type, where that is newer than the oldest supported one.
_SINCE = {
    "dinov2": "4.31",
    "dinov2_with_registers": "4.48",
    "hiera": "4.42",
    "ijepa": "4.48",
    "pvt": "4.33",
    "pvt_v2": "4.40",
    "swiftformer": "4.29",
    "textnet": "4.48",
    TIMM: "4.53",
}
# Types of which Transformers has the backbone alone.
_WITHOUT_CLASSIFIER = {
    "dinov3_vit": "timm/vit_small_patch16_dinov3.lvd1689m",
    "dinov3_convnext": "timm/convnext_tiny.dinov3_lvd1689m",
}


def read_config(source: Union[str, Path], next_move: str = NEXT_MOVE) -> Any:
    """The configuration in the folder or Hub repository of an image model. Raises UserError for every other model."""
    values = read_values(source, next_move)
    kind = values.get("model_type") or (TIMM if is_timm(values) else None)
    architectures = (
        ", ".join(values.get("architectures") or []) or values.get("architecture") or "no architecture named"
    )
    found = f"{source} holds a model of model_type {kind} ({architectures})"
    if kind in _WITHOUT_CLASSIFIER:
        raise UserError(
            f"{found}, of which Transformers {transformers.__version__} has no image classifier. timm has the same weights: "
            f"--model {_WITHOUT_CLASSIFIER[kind]} (needs ipu-trainer[timm] and Transformers {_SINCE[TIMM]} or later)."
        )
    if kind not in CONFIG_MAPPING or (kind == TIMM and not hasattr(CONFIG_MAPPING[TIMM](), "model_args")):
        since = f"needs Transformers {_SINCE[kind]} or later" if kind in _SINCE else "is none that Transformers knows"
        raise UserError(f"{found}, which {since}; {transformers.__version__} is installed. {next_move}")
    if kind == TIMM:
        check_timm(source)
    config_class = CONFIG_MAPPING[kind]
    if config_class not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "text_config" in values:
        raise UserError(
            f"{found}, and chest-xray trains image classifiers: its weights would not be loaded, and training would start from "
            f"random ones. {next_move}"
        )
    config = make_config(lambda: config_class.from_dict(values), str(source), next_move)
    if classifier_class(config).main_input_name != "pixel_values":
        raise UserError(
            f"{found}, which reads {classifier_class(config).main_input_name} instead of images. {next_move}"
        )
    channels = num_channels(config)
    if channels not in (1, 3):
        raise UserError(
            f"{source}: num_channels is {channels} in its config.json, but X-rays have one channel of gray, which "
            f"models of 1 or 3 channels read. {next_move}"
        )
    return config


def read_values(source: Union[str, Path], next_move: str = NEXT_MOVE) -> Dict[str, Any]:
    """The config.json of an image model. Raises UserError where there is none that can be read."""
    try:
        if Path(source).is_dir():
            return config_values(str(source), next_move) or {}
        values: Dict[str, Any] = PretrainedConfig.get_config_dict(str(source))[0]
    except MissingFileError:
        raise UserError(f"{source} has no readable config.json (there is none). {next_move}") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{source} has no readable config.json ({first_line(error)}) {next_move}") from error
    return values


def is_timm(values: Dict[str, Any]) -> bool:
    """Whether config.json is timm's own, which names no model_type."""
    return "pretrained_cfg" in values and "architecture" in values


def check_timm(source: Union[str, Path]) -> None:
    """Raise UserError if timm or torchvision, which Transformers' wrapper of timm needs, cannot be imported."""
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise UserError(
            f"{source} is a model of timm, and timm with torchvision cannot be imported ({first_line(error)}). pip install "
            "'ipu-trainer[timm]'; beside a CPU build of torch take torchvision from the same index "
            "(https://download.pytorch.org/whl/cpu)."
        ) from error


def classifier_class(config: Any) -> Any:
    """Transformers' image classifier of a configuration; of several the one that it names, else the first."""
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    if inspect.isclass(classes):
        return classes
    named = getattr(config, "architectures", None) or []
    return next((one for one in classes if one.__name__ in named), classes[0])


def num_channels(config: Any) -> int:
    """Channels that the model reads; three where its configuration has no such number."""
    if config.model_type == TIMM:
        return int((config.model_args or {}).get("in_chans", 3))
    return int(getattr(config, "num_channels", 3))


def both_sides(size: Any) -> Tuple[int, int]:
    """(height, width) of a setting that may be a single number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_size(config: Any) -> Optional[Tuple[int, int]]:
    """(height, width) that a configuration names; None where it names none, as ResNet's."""
    if config.model_type == TIMM:
        shape = getattr(config, "pretrained_cfg", {}).get("input_size")
        return None if shape is None else (int(shape[1]), int(shape[2]))
    size = getattr(config, "image_size", None)
    return None if size is None else both_sides(size)


def skips_layers_by(config: Any) -> str:
    """How stochastic depth is possible: "config" (the model's own setting), "hooks" (ours), or "" (not at all)."""
    if config.model_type == TIMM:
        return "config" if _timm_takes_drop_path(config) else ""
    if own_drop_path(config) is not None:
        try:
            copy.deepcopy(config).drop_path_rate = 0.5
        except Exception:  # a configuration that checks types, and takes whole numbers alone (LeViT's of 5.x)
            return ""
        return "config"
    try:
        with torch.device("meta"):
            model = classifier_class(config)(config)
    except RuntimeError:  # a model that reads a tensor while it is made (CvT's of 4.29)
        model = classifier_class(config)(config)
    return "hooks" if can_skip_layers(model) else ""


def _timm_takes_drop_path(config: Any) -> bool:
    """timm's models are made of keyword arguments, and refuse those that they do not have. Raises UserError for unknown models."""
    import timm

    for device in ("meta", "cpu"):  # models of timm before 1.0.16 read a tensor while they are made
        try:
            with torch.device(device):
                timm.create_model(config.architecture, **{**(config.model_args or {}), "drop_path_rate": 0.0})
            break
        except TypeError:
            return False
        except RuntimeError as error:
            if device == "cpu" or "Unknown model" in str(error):
                raise UserError(f"{config.architecture}: timm {timm.__version__} cannot make it ({error}).") from error
    return True


def drop_path_setting(config: Any, rate: float) -> Dict[str, Any]:
    """The settings of a configuration whose model skips its layers itself, at this rate."""
    if config.model_type == TIMM:
        return {"model_args": {**(config.model_args or {}), "drop_path_rate": rate}}
    return {"drop_path_rate": rate}
