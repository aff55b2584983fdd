"""Labels of which some are unknown: NaN, where a label is uncertain or missing. A finding is counted over its known labels alone.

labels: float (num_samples, num_findings) of 0, 1 and NaN, everywhere here.
"""

from __future__ import annotations

from typing import List, Sequence

import numpy as np


def has_unknown(labels: np.ndarray) -> bool:
    return bool(np.isnan(labels).any())


def num_known(labels: np.ndarray) -> np.ndarray:
    """Known labels of each finding: (num_findings,), in the type of labels."""
    return np.asarray((~np.isnan(labels)).sum(axis=0), dtype=labels.dtype)


def num_positive(labels: np.ndarray) -> np.ndarray:
    """Labels of each finding that are 1: (num_findings,)."""
    return np.asarray(np.nansum(labels, axis=0))


def prevalence(labels: np.ndarray, without_known: float = 0.5) -> np.ndarray:
    """The positive share of each finding's known labels: (num_findings,); without_known for a finding that has none."""
    if not has_unknown(labels):
        return np.asarray(labels.mean(axis=0))
    known = num_known(labels)
    share = num_positive(labels) / np.maximum(known, 1)
    return np.asarray(np.where(known > 0, share, without_known).astype(labels.dtype))


def without_positive(labels: np.ndarray, findings: Sequence[str]) -> List[str]:
    """The findings that no sample is known to have."""
    return [name for name, count in zip(findings, num_positive(labels)) if not count]
