"""Saliency maps of a ViT: attention rollout, and attention weighted by the gradient of one finding's logit.

Rollout (Abnar and Zuidema, ACL 2020) multiplies the layers' attention, with the identity added for the residual connections:
one map an image, the same for every finding. Gradient-weighted attention (Chefer et al., ICCV 2021) keeps the attention that
raises the logit of a finding: one map a finding. Both show what the model used, not what is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import torch

from ipu_trainer.compat.transformers_training import use_eager_attention
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.model.classifier import TRAIN_AGAIN, both_sides, load_finished, read_config

_IMAGES_AT_ONCE = 8


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
    for start in range(0, len(pixel_values), _IMAGES_AT_ONCE):
        part = pixel_values[start : start + _IMAGES_AT_ONCE].to(model.device)
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
