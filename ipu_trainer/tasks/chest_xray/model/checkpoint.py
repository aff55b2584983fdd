"""An image model with one output a finding, from a checkpoint of any head or none, or from the folder of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.model.architectures import (
    NEXT_MOVE,
    classifier_class,
    drop_path_setting,
    read_config,
    skips_layers_by,
)
from ipu_trainer.tasks.chest_xray.model.input_size import fit_to_size
from ipu_trainer.tasks.pretrained import TRAIN_AGAIN, load_reported
from ipu_trainer.training.layers import head_parameters

# Parts of a base model that some of its checkpoints have and others do not, because only some heads use them.
_OPTIONAL = ("pooler",)
# Tensors of a checkpoint that a classifier never reads: tokens of masked training, and tables that are computed anew.
_NEVER_READ = ("mask_token", "pooler", "relative_position_index", "relative_coords_table", "num_batches_tracked")
_LAST_NORM = "layernorm"  # BEiT's head has a norm of its own in place of it


class NewModel(NamedTuple):
    """A model before its training. notes: what of the checkpoint was changed, added or left out, one sentence each."""

    model: Any
    notes: Tuple[str, ...]


def load_model(
    source: str,
    findings: Sequence[str],
    prevalence: np.ndarray,
    size: Optional[int] = None,
    drop_path: Optional[float] = None,
) -> NewModel:
    """An image classifier with one output a finding, float32; a new head starts at each finding's prevalence.

    A checkpoint's head is kept if its outputs are these findings in this order. size: side of the images in pixels; None is
    the checkpoint's. drop_path: the rate of a model that skips its layers itself. Raises UserError for a model that is no
    image classifier, lacks weights, or cannot read images of this size.
    """
    config = read_config(source)
    before, names = config.id2label, dict(enumerate(findings))
    options: Dict[str, Any] = {
        "num_labels": len(findings),
        "id2label": names,
        "label2id": {name: position for position, name in names.items()},
        "problem_type": "multi_label_classification",
    }
    if drop_path is not None and skips_layers_by(config) == "config":
        options.update(drop_path_setting(config, drop_path))
    loaded = load_reported(classifier_class(config), source, NEXT_MOVE, new_parts=_OPTIONAL, **options)
    model = loaded.model
    notes = _left_out(model, loaded.unused, source)
    head = head_parameters(model)
    is_new = any(name in loaded.new for name in head)
    is_other = not is_new and [before[key] for key in sorted(before)] != list(
        findings
    )  # as many outputs, but other findings
    if is_new or is_other:
        layers = final_layers(model, len(findings))
        _begin_head(layers, prevalence, getattr(model.config, "initializer_range", 0.02) if is_other else None)
        is_bare = all(name in loaded.missing for name in head)
        kind = "it holds a backbone without a head" if is_bare else "its head has other outputs"
        notes.append(
            f"{kind}: a new linear head ({', '.join(layers)}) begins at the prevalence of {len(findings)} findings"
        )
    elif loaded.new:
        notes.append(f"new: {_some(loaded.new)}")
    if size is not None:
        model, changed = fit_to_size(model, size, source)
        notes += changed
    return NewModel(model, tuple(notes))


def load_finished(run_dir: Path, config: Optional[Any] = None) -> Any:
    """The model in a run's folder, with its head. Raises UserError unless its weights hold exactly its tensors."""
    config = config or read_config(run_dir, TRAIN_AGAIN)
    return load_reported(classifier_class(config), str(run_dir), TRAIN_AGAIN, finished=True, config=config).model


def final_layers(model: Any, num_outputs: int) -> Dict[str, nn.Linear]:
    """The head's linear layers that make the outputs, by name: one, or two where a model averages them (DeiT with a teacher).

    Raises UserError for a head of another kind.
    """
    head = {name.rpartition(".")[0] for name in head_parameters(model)}
    found = {name: part for name, part in model.named_modules() if name in head and isinstance(part, nn.Linear)}
    layers = {name: part for name, part in found.items() if part.out_features == num_outputs and part.bias is not None}
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no linear layer with a bias that makes its outputs ({', '.join(sorted(head))}), so "
            f"its head cannot begin at the prevalence of the findings. {NEXT_MOVE}"
        )
    return layers


def _begin_head(layers: Dict[str, nn.Linear], prevalence: np.ndarray, new_std: Optional[float]) -> None:
    """Biases at the prevalence; new_std: draw the weights too."""
    rate = torch.as_tensor(np.clip(prevalence, 0.005, 0.99), dtype=torch.float32)
    with torch.no_grad():
        for layer in layers.values():
            if new_std is not None:
                nn.init.trunc_normal_(layer.weight, std=new_std)
            layer.bias.copy_(torch.logit(rate))


def _left_out(model: Any, unused: Collection[str], source: str) -> List[str]:
    """A note on heads that are not used. Raises UserError for tensors of the backbone that the model has no place for."""
    prefix = model.base_model_prefix
    base = getattr(model, prefix, model)
    inside = {*(name for name, _ in base.named_children()), *(name for name, _ in base.named_parameters(recurse=False))}
    read = [name for name in unused if not any(part in name.split(".") for part in _NEVER_READ)]
    parts = {name: name[len(prefix) + 1 :] if name.startswith(prefix + ".") else name for name in read}
    lost = sorted(name for name, part in parts.items() if name != part or part.split(".")[0] in inside)
    lost = [name for name in lost if parts[name].split(".")[0] != _LAST_NORM]
    if lost:
        raise UserError(
            f"{source} holds {len(lost)} tensors of the backbone that a {type(model).__name__} of its config.json has no place "
            f"for, such as {lost[0]}: it was another model. {NEXT_MOVE}"
        )
    others = {part.split(".")[0] for part in parts.values()}
    return [f"not used: {_some(others)}"] if others else []


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
