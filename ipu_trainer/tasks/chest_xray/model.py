"""The model of the task: a Transformers image classifier with one output a finding."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import torch
from transformers import AutoImageProcessor, ViTForImageClassification


def load_model(source: str, findings: Sequence[str], prevalence: np.ndarray) -> Any:
    """A ViT with one output a finding; a new head starts at each finding's prevalence."""
    names = dict(enumerate(findings))
    model, loading = ViTForImageClassification.from_pretrained(
        source,
        num_labels=len(findings),
        id2label=names,
        label2id={name: position for position, name in names.items()},
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model = model.float()
    fresh = set(loading["missing_keys"]) | {str(item[0]) for item in loading["mismatched_keys"]}
    if "classifier.bias" in fresh:
        rate = torch.as_tensor(np.clip(prevalence, 0.005, 0.99), dtype=torch.float32)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.logit(rate))
    return model


def load_processor(model: str) -> Any:
    """The model's image processor, saved beside the weights so that the run is a complete model folder."""
    return AutoImageProcessor.from_pretrained(model)
