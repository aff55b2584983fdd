"""Saliency maps: what a model used of an image, not what is true. Two kinds of models, two kinds of maps.

Models whose attention is global over patches (_ATTENTION: ViT, DeiT, BEiT, DINOv2) have two maps. Rollout (Abnar and Zuidema,
ACL 2020) multiplies the layers' attention, with the identity added for the residual connections: one map an image, the same for
every finding. Gradient-weighted attention (Chefer et al., ICCV 2021) keeps the attention that raises the logit of a finding: one
map a finding. Both are read where the head reads: at the class token, at the mean of the patches, or at both.

All others (ConvNeXt, ResNet, DenseNet, EfficientNet, Swin, models of timm) have integrated gradients (Sundararajan et al., ICML
2017; captum's IntegratedGradients): what raises the logit of a finding on the way from an image of the checkpoint's mean to this
one, its positive part averaged over cells. Grad-CAM of the last feature map was measured against it: features of a pyramid have
seen their neighbours, and that map's maximum is often beside the sign (tests/chest_xray/test_localisation.py has the numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.nn import functional

from ipu_trainer.compat.transformers_training import use_eager_attention
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.model.architectures import both_sides, read_config
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_finished
from ipu_trainer.tasks.pretrained import TRAIN_AGAIN

_IMAGES_A_PASS = 8
ATTENTION_METHOD = "gradient-weighted"
INTEGRATED_METHOD = "integrated gradients"
_STEPS = 16  # forward and backward passes an image
_MOST_CELLS = 14  # a side; at 224 pixels as many as a ViT has patches of 16
_SMALLEST_CELL = 8  # pixels a side
# Types of models whose attention is over all patches; the tokens before the patches that their head reads (0 is the class token),
# and whether it reads the mean of the patches. BEiT's depends on its configuration.
_ATTENTION: Dict[str, Tuple[Tuple[int, ...], bool]] = {
    "vit": ((0,), False),
    "deit": ((0,), False),
    "beit": ((0,), False),
    "dinov2": ((0,), True),
    "dinov2_with_registers": ((0,), True),
}


@dataclass(frozen=True)
class Saliency:
    """float32 (num_images, rows, columns) each; one cell a patch, or for integrated gradients 14 x 14. method made `gradient`."""

    rollout: Optional[np.ndarray]
    gradient: np.ndarray
    method: str = ATTENTION_METHOD


def load_for_saliency(run_dir: Path, findings: Sequence[str]) -> Any:
    """The run's model in evaluation mode, for saliency(). Raises UserError if it belongs to other findings, or needs captum."""
    config = read_config(run_dir, TRAIN_AGAIN)
    if config.num_labels != len(findings):
        raise UserError(
            f"the model in {run_dir} has {config.num_labels} outputs for {len(findings)} findings, so it belongs to another run."
        )
    if config.model_type in _ATTENTION:
        use_eager_attention(config)  # other implementations do not compute attention probabilities as tensors
    else:
        _captum()
    model = load_finished(run_dir, config)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def saliency(model: Any, pixel_values: torch.Tensor, columns: Sequence[int]) -> Saliency:
    """Maps of pixel_values float32 (num_images, channels, height, width), each for the output in its entry of columns."""
    has_attention = model.config.model_type in _ATTENTION
    rollouts: List[np.ndarray] = []
    gradients: List[np.ndarray] = []
    for start in range(0, max(1, len(pixel_values)), _IMAGES_A_PASS):
        part = pixel_values[start : start + _IMAGES_A_PASS].to(model.device)
        wanted = torch.as_tensor(list(columns[start : start + len(part)]), device=part.device)
        if has_attention:
            rollout, gradient = _attention_maps(model, part, wanted)
            rollouts.append(rollout)
        else:
            gradient = _integrated_gradients(model, part, wanted)
        gradients.append(gradient)
    gradient = np.concatenate(gradients)
    if has_attention:
        return Saliency(np.concatenate(rollouts), gradient)
    return Saliency(None, gradient, INTEGRATED_METHOD)


def _attention_maps(model: Any, pixels: torch.Tensor, wanted: torch.Tensor) -> Tuple[np.ndarray, np.ndarray]:
    size, patch = both_sides(model.config.image_size), both_sides(model.config.patch_size)
    rows, cols = size[0] // patch[0], size[1] // patch[1]
    if not len(pixels):
        empty = np.zeros((0, rows, cols), dtype=np.float32)
        return empty, empty
    with torch.enable_grad():
        output = model(pixel_values=pixels, output_attentions=True)
        attentions = list(output.attentions)  # (images, heads, tokens, tokens) a layer
        chosen = output.logits.gather(1, wanted[:, None]).sum()
        attention_gradients = torch.autograd.grad(chosen, attentions)
    with torch.no_grad():
        totals = _rollout(attentions), _weighted(attentions, attention_gradients)
        read = [_read_by_head(total, model, rows * cols) for total in totals]
        rollout, gradient = (_to_grid(tokens, rows, cols) for tokens in read)
    return rollout, gradient


def _rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """(images, tokens, tokens): the contribution of each token of the image to each one of the last layer."""
    total = _identity(attentions[0])
    for attention in attentions:
        total = (0.5 * attention.mean(dim=1) + 0.5 * _identity(attention)) @ total
    return total


def _weighted(attentions: Sequence[torch.Tensor], attention_gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    total = _identity(attentions[0])
    for attention, gradient in zip(attentions, attention_gradients):
        total = total + (attention * gradient).clamp(min=0).mean(dim=1) @ total
    return total


def _read_by_head(total: torch.Tensor, model: Any, num_patches: int) -> torch.Tensor:
    """(images, tokens) of (images, tokens, tokens): the mean over the tokens that the head reads, the patches' mean as one."""
    tokens, reads_patches = _ATTENTION[model.config.model_type]
    if getattr(model.config, "use_mean_pooling", False):  # BEiT's head reads patches alone
        tokens, reads_patches = (), True
    if type(model).__name__ == "DeiTForImageClassificationWithTeacher":
        tokens = (0, 1)
    read = [total[:, token] for token in tokens]
    if reads_patches:
        read.append(total[:, total.shape[1] - num_patches :].mean(dim=1))
    return torch.stack(read).mean(dim=0)


def _identity(attention: torch.Tensor) -> torch.Tensor:
    return torch.eye(attention.shape[-1], device=attention.device)[None]


def _to_grid(tokens: torch.Tensor, rows: int, cols: int) -> np.ndarray:
    """The patches of (images, tokens), without the tokens before them, as (images, rows, cols)."""
    patches = tokens[:, tokens.shape[1] - rows * cols :]
    return np.asarray(patches.reshape(-1, rows, cols).float().cpu().numpy())


def _captum() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UserError(
            "saliency maps of a model without global attention need captum: pip install 'ipu-trainer[explain]'."
        ) from error
    return IntegratedGradients


def _integrated_gradients(model: Any, pixels: torch.Tensor, wanted: torch.Tensor) -> np.ndarray:
    """float32 (images, cells, cells)."""
    cells = max(1, min(_MOST_CELLS, pixels.shape[2] // _SMALLEST_CELL))
    if not len(pixels):
        return np.zeros((0, cells, cells), dtype=np.float32)
    method = _captum()(lambda given: model(pixel_values=given).logits)
    raised = method.attribute(pixels, target=wanted, n_steps=_STEPS, internal_batch_size=_IMAGES_A_PASS)
    positive = raised.sum(dim=1, keepdim=True).clamp(min=0)
    maps = functional.adaptive_avg_pool2d(positive, (cells, cells))[:, 0]
    return np.asarray(maps.detach().float().cpu().numpy())
