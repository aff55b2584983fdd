"""Perplexity that weighs every predicted token once, whatever the batches."""

from __future__ import annotations

from typing import Any, Callable, Dict

import numpy as np
import torch
from torch.nn import functional

from ipu_trainer.tasks.language_modeling.corpus import IGNORED


def token_losses(causal: bool) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """For Trainer's preprocess_logits_for_metrics: (nats, predicted tokens) of each row, float32, shape (rows, 2).

    Keeps evaluation from holding logits of the whole validation set.
    """

    def of_batch(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        scores = logits[0] if isinstance(logits, (tuple, list)) else logits
        if causal:
            scores, labels = scores[:, :-1], labels[:, 1:]
        nats = functional.cross_entropy(
            scores.float().reshape(-1, scores.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        counted = (labels != IGNORED).sum(dim=1).float()
        return torch.stack([nats.reshape(labels.shape).sum(dim=1), counted], dim=1)

    return of_batch


def perplexity(prediction: Any) -> Dict[str, float]:
    """compute_metrics for token_losses: perplexity, nats a token, and how many tokens were predicted."""
    rows = np.asarray(prediction.predictions, dtype=np.float64)
    total, count = rows[:, 0].sum(), rows[:, 1].sum()
    nats = total / count if count else float("nan")
    return {"perplexity": float(np.exp(min(nats, 700.0))), "nats_per_token": float(nats), "num_tokens": float(count)}
