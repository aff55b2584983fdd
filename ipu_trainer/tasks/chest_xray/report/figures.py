"""Drawings of the task's page: one card a finding, and calibration over all findings."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from ipu_trainer.tasks.chest_xray.evaluation.calibration import ReliabilityBin, reliability
from ipu_trainer.tasks.reporting.drawing import BLUE, GREEN, GREY, ORANGE, RED, canvas, thinned

_MOST_POINTS = 120


def finding_card(y: np.ndarray, score: np.ndarray, threshold: float = float("nan")) -> str:
    """ROC, precision-recall and reliability of one finding that has both classes; a dot where the threshold is."""
    with canvas(4.6, 1.75, columns=3) as (_, axes, out):
        called = score >= threshold
        positives, negatives = y == 1, y == 0
        false_positive, true_positive, _ = roc_curve(y, score)
        axes[0].plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
        axes[0].plot(*thinned(false_positive, true_positive, _MOST_POINTS), color=BLUE, linewidth=1.2)
        precision, recall, _ = precision_recall_curve(y, score)
        axes[1].axhline(float(np.mean(y)), color=GREY, linewidth=0.6)
        axes[1].step(*thinned(recall, precision, _MOST_POINTS), where="pre", color=GREEN, linewidth=1.2)
        if np.isfinite(threshold):
            sensitivity = called[positives].mean()
            axes[0].plot([called[negatives].mean()], [sensitivity], "o", color=RED, markersize=4)
            if called.any():
                axes[1].plot([sensitivity], [y[called].mean()], "o", color=RED, markersize=4)
        _draw_reliability(axes[2], reliability(y, score, 6))
        titles = ("ROC", "precision - recall", "reliability")
        labels = (
            ("1 - specificity", "sensitivity"),
            ("recall", "precision"),
            ("mean probability", "observed rate"),
        )
        for place, title, (x, name) in zip(axes, titles, labels):
            place.set_title(title, fontsize=8)
            place.set_xlabel(x, fontsize=7.5)
            place.set_ylabel(name, fontsize=7.5)
            place.tick_params(labelsize=7)
        for place in axes[:2]:
            place.set_xlim(-0.02, 1.02)
            place.set_ylim(-0.02, 1.05)
            place.set_xticks([0, 0.5, 1])
            place.set_yticks([0, 0.5, 1])
    return out[0]


def calibration(y: np.ndarray, score: np.ndarray) -> str:
    """Reliability of all findings' predictions together."""
    with canvas(4.6, 3.2) as (_, (axes,), out):
        _draw_reliability(axes, reliability(y, score, 10))
        axes.set_xlabel("mean probability (tenths of the predictions)")
        axes.set_ylabel("observed rate, 95 % interval")
    return out[0]


def _draw_reliability(axes: Any, bins: Sequence[ReliabilityBin]) -> None:
    x, y = [b.probability for b in bins], [b.rate for b in bins]
    top = max([*x, *(b.high for b in bins), 0.05]) * 1.05
    axes.plot([0, top], [0, top], color=GREY, linewidth=0.6)
    if bins:
        errors = np.abs(np.array([[b.rate - b.low for b in bins], [b.high - b.rate for b in bins]]))
        axes.errorbar(x, y, yerr=errors, fmt="o-", color=ORANGE, markersize=2.5, linewidth=1.0, elinewidth=0.8)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
