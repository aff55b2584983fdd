"""Calibration, whether a probability of 0.2 means one in five: reliability bins, Brier score, ECE, Wilson intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import numpy as np


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of predictions: mean probability, observed rate with its 95 % Wilson interval, and number of predictions."""

    probability: float
    rate: float
    low: float
    high: float
    count: int


def reliability(y: np.ndarray, score: np.ndarray, num_bins: int = 10) -> Tuple[ReliabilityBin, ...]:
    """Bins with equal numbers of predictions, fewer bins where scores tie; empty without finite predictions."""
    if not len(score) or not np.isfinite(score).all():
        return ()
    edges = np.unique(np.quantile(score, np.linspace(0, 1, num_bins + 1)))
    bins = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, max(0, len(edges) - 2))
    result = []
    for number in np.unique(bins):
        inside = bins == number
        count, positives = int(inside.sum()), int(y[inside].sum())
        low, high = wilson_interval(positives, count)
        result.append(ReliabilityBin(float(score[inside].mean()), positives / count, low, high, count))
    return tuple(result)


def brier_score(y: np.ndarray, score: np.ndarray) -> float:
    """Mean squared difference of probability and label; NaN without finite predictions."""
    if not len(score) or not np.isfinite(score).all():
        return float("nan")
    return float(np.mean((score - y) ** 2))


def expected_calibration_error(y: np.ndarray, score: np.ndarray, num_bins: int = 15) -> float:
    """ECE (Naeini et al., AAAI 2015): mean of |observed rate - mean probability| over equal-width bins, weighted by their size."""
    bins = np.minimum((score * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    rate, mean = np.bincount(bins, y, num_bins), np.bincount(bins, score, num_bins)
    return float(np.abs(rate - mean).sum() / counts.sum())


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> Tuple[float, float]:
    """95 % score interval of a proportion (Wilson, JASA 1927); NaN without trials."""
    if not trials:
        return float("nan"), float("nan")
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
