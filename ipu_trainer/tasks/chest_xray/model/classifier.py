"""The model of the task: a Transformers image classifier with one output a finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, PretrainedConfig, ViTConfig, ViTForImageClassification

from ipu_trainer.errors import UserError, user_input
from ipu_trainer.tasks.pretrained import load_pretrained

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
        nn.init.trunc_normal_(
            model.classifier.weight, std=model.config.initializer_range
        )  # the same number of outputs, but other findings
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
