"""The training loss over findings: binary cross-entropy or its asymmetric form, mixed with a pairwise ranking loss.

AUROC is the probability that a positive sample scores above a negative one. The ranking term is the logistic upper bound of
1 - AUROC over the pairs of a micro-batch (Burges et al., "Learning to rank using gradient descent", ICML 2005), so it optimises
the reported metric; cross-entropy keeps the probabilities calibrated.

A label that is NaN is unknown: it adds nothing to the loss, and the means are over the known labels of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as functional

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.known_labels import num_known, num_positive
from ipu_trainer.training.acceleration.input_pipeline import constant

KINDS = ("bce", "asymmetric")


@dataclass(frozen=True)
class FindingLoss:
    """Loss of logits against N-hot labels, both (micro_batch, num_findings), as a float32 mean.

    ranking_weight w mixes (1 - w) x kind + w x ranking. pos_weight, one number a finding, weighs positives (bce only).
    asymmetric: Ridnik et al., "Asymmetric loss for multi-label classification", ICCV 2021, with focusing exponent gamma for
    negatives, whose probability is shifted down by margin. label_smoothing s: the targets of kind are s / 2 and 1 - s / 2; the
    ranking term does not change.

    masked: labels may be NaN. kind is then the mean over the known labels of the micro-batch, and ranking the mean over its pairs
    of known labels; without any, both are 0 and so are their gradients. All micro-batches of an update count alike, however many
    labels they know. Whether labels may be NaN is a property of the data set, so that no batch is looked at to find out.
    """

    kind: str = "bce"
    ranking_weight: float = 0.5
    pos_weight: Optional[Tuple[float, ...]] = None
    gamma: float = 2.0
    margin: float = 0.05
    label_smoothing: float = 0.0
    masked: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"loss {self.kind!r} is not one of {', '.join(KINDS)}.")
        if not 0.0 <= self.ranking_weight < 1.0:
            raise UserError(f"ranking_weight {self.ranking_weight} must be at least 0 (off) and below 1.")
        if self.pos_weight is not None and self.kind != "bce":
            raise UserError("pos_weight weighs the positives of bce; asymmetric has gamma for that. Use --loss bce.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"label_smoothing {self.label_smoothing} must be at least 0 (off) and below 1.")
        if self.gamma < 0 or not 0.0 <= self.margin < 1.0:
            raise UserError(f"gamma {self.gamma} must be at least 0 and margin {self.margin} from 0 to below 1.")

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, labels = logits.float(), labels.float()
        known = None
        if self.masked:
            unknown = torch.isnan(labels)
            known, labels = 1.0 - unknown.float(), labels.masked_fill(unknown, 0.0)
        targets = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing if self.label_smoothing else labels
        if self.kind == "bce":
            weight = None if self.pos_weight is None else constant(self.pos_weight, logits)
            reduction = "mean" if known is None else "none"
            loss = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction=reduction)
        else:
            loss = self._asymmetric(logits, targets)
            loss = loss.mean() if known is None else loss
        if known is not None:
            loss = (loss * known).sum() / known.sum().clamp(min=1.0)
        if self.ranking_weight:
            loss = (1.0 - self.ranking_weight) * loss + self.ranking_weight * ranking_loss(logits, labels, known)
        return loss

    def describe(self) -> str:
        parts = [f"{1.0 - self.ranking_weight:g} x {self.kind}"]
        parts += [f"{self.ranking_weight:g} x pairwise ranking"] if self.ranking_weight else []
        weighted = ", positives weighted" if self.pos_weight is not None else ""
        smoothed = f", targets smoothed by {self.label_smoothing:g}" if self.label_smoothing else ""
        masked = ", over known labels" if self.masked else ""
        return " + ".join(parts) + weighted + smoothed + masked

    def _asymmetric(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        probability = torch.sigmoid(logits)
        shifted = (probability - self.margin).clamp(min=0.0)
        positive = labels * functional.logsigmoid(logits)
        negative = (1.0 - labels) * torch.log1p(-shifted) * shifted**self.gamma
        return -(positive + negative)


def ranking_loss(logits: torch.Tensor, labels: torch.Tensor, known: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Mean of softplus(negative's logit - positive's logit) over all pairs of a finding, all findings together.

    known: 1 where a label is known, 0 where it is not and the label is written as 0; None: all are. 0 where a micro-batch has no
    such pair.
    """
    margin = logits[:, None, :] - logits[None, :, :]
    negatives = 1.0 - labels if known is None else known - labels
    pairs = labels[:, None, :] * negatives[None, :, :]
    return (functional.softplus(-margin) * pairs).sum() / pairs.sum().clamp(min=1.0)


def inverse_frequency(labels: np.ndarray, largest: float = 20.0) -> Tuple[float, ...]:
    """negatives / positives of each finding among its known labels, at least 1 and at most largest."""
    positives = num_positive(labels)
    ratio = (num_known(labels) - positives + 1.0) / (positives + 1.0)
    return tuple(float(value) for value in np.clip(ratio, 1.0, largest))
