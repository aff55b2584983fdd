"""Metrics by finding with patient-level bootstrap intervals, at thresholds chosen on validation; calibration.

Each finding is a binary problem with a sigmoid probability. "mean_auroc_14" is the macro mean over the findings without "No
Finding". A finding with one class only has AUROC NaN and is listed. Intervals resample *patients*, because images of one
patient are not independent.

Truth is 0, 1, or NaN where it is unknown. Everything of a finding is computed from the images whose label of it is known; all
patients are resampled together for all findings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.known_labels import has_unknown
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING, pathologies

AGE_BANDS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 200))
SMALLEST_SUBGROUP = 10
# Intervals of subgroups are shown in figures, for which a quarter of the replicates is enough.
_SUBGROUP_REPLICATES = 250


def evaluate_predictions(
    truth: np.ndarray,
    probability: np.ndarray,
    findings: Sequence[str],
    table: Mapping[str, Sequence[Any]],
    thresholds: Optional[Mapping[str, float]] = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Dict[str, Any]:
    """All metrics of one set of predictions.

    truth and probability: (num_images, num_findings). table holds patient_id and, for subgroups, sex, age, view.
    thresholds: per finding, chosen on validation; without them sensitivity and specificity are left out.
    The rows of findings have num_known, the images whose label is known, only where some label is unknown.
    """
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    if truth.shape != probability.shape or truth.shape[1:] != (len(findings),):
        raise UserError(
            f"truth {truth.shape} and probability {probability.shape} must both be (images, {len(findings)} findings)."
        )
    replicates = patient_bootstrap(truth, probability, table["patient_id"], num_bootstrap, seed)
    masked = has_unknown(truth)
    rows: Dict[str, Dict[str, Any]] = {}
    for column, name in enumerate(findings):
        row = _finding(truth[:, column], probability[:, column])
        if masked:
            row["num_known"] = int((~np.isnan(truth[:, column])).sum())
        for metric in ("auroc", "auprc"):
            has_value = not np.isnan(row[metric])
            row[f"{metric}_interval"] = _interval(replicates[metric][:, column]) if has_value else [float("nan")] * 2
        if thresholds is not None:
            row.update(_operating_point(truth[:, column], probability[:, column], thresholds.get(name, float("nan"))))
        rows[name] = row
    reported = pathologies(findings)
    columns = [list(findings).index(name) for name in reported]
    defined = [name for name in reported if not np.isnan(rows[name]["auroc"])]
    result: Dict[str, Any] = {
        "num_images": len(truth),
        "num_patients": len(set(table["patient_id"])),
        "mean_auroc_14": _mean([rows[name]["auroc"] for name in defined]),
        "mean_auroc_14_interval": _interval(_row_means(replicates["auroc"][:, columns])),
        "mean_auprc_14": _mean([rows[name]["auprc"] for name in defined]),
        "mean_of": f"macro mean over the {len(defined)} of {len(reported)} findings with both classes, {NO_FINDING!r} apart",
        "undefined_findings": [name for name in reported if name not in defined],
        "per_finding": {name: rows[name] for name in reported},
    }
    if NO_FINDING in rows:
        result["no_finding"] = rows[NO_FINDING]
    few = min(num_bootstrap, _SUBGROUP_REPLICATES)
    result["subgroups"] = _subgroups(truth[:, columns], probability[:, columns], reported, table, few, seed)
    result["bootstrap"] = {
        "replicates": num_bootstrap,
        "unit": resampled_unit(table["patient_id"]),
        "level": 0.95,
        "seed": seed,
    }
    return result


def resampled_unit(ids: Sequence[Any]) -> str:
    """ "patient", or "study" or "image" where ids name no patients (label_table.Row.group)."""
    for unit in ("study", "image"):
        if len(ids) and all(str(name).startswith(f"{unit}:") for name in ids):
            return unit
    return "patient"


def choose_thresholds(truth: np.ndarray, probability: np.ndarray, findings: Sequence[str]) -> Dict[str, float]:
    """For each finding the probability that maximises sensitivity + specificity (Youden's J); NaN without both classes."""
    thresholds = {}
    for column, name in enumerate(findings):
        y, score = known_only(truth[:, column], probability[:, column])
        thresholds[name] = float("nan")
        if _has_both(y) and np.isfinite(score).all():
            false_positive, true_positive, values = roc_curve(y, score)
            best = int(np.argmax(true_positive - false_positive))
            thresholds[name] = float(min(values[best], 1.0))
    return thresholds


def mean_auroc(truth: np.ndarray, probability: np.ndarray, findings: Sequence[str]) -> float:
    """Macro mean over the findings with both classes, without "No Finding": the metric tracked during training."""
    columns = [column for column, name in enumerate(findings) if name != NO_FINDING]
    pairs = [known_only(truth[:, column], probability[:, column]) for column in columns]
    return _mean([float(roc_auc_score(y, score)) for y, score in pairs if _has_both(y) and np.isfinite(score).all()])


def known_only(y: np.ndarray, score: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Labels of a finding and their scores, (num_images,) each, without the images whose label is unknown."""
    known = ~np.isnan(y)
    return (y, score) if known.all() else (y[known], score[known])


def weighted_auroc(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under each row of sample weights: (num_replicates,) from weights (num_replicates, num_samples).

    Equals sklearn's roc_auc_score(y, score, sample_weight=row), ties included; NaN where a class has no weight.
    """
    starts, order = _tie_groups(score)
    positive = np.add.reduceat(weights[:, order] * y[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - y[order]), starts, axis=1)
    above = positive.cumsum(axis=1) - positive  # positives that score strictly higher
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (negative * (above + 0.5 * positive)).sum(axis=1)
        return np.asarray(area / (positive.sum(axis=1) * negative.sum(axis=1)))


def weighted_average_precision(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision under each row of sample weights, as sklearn's average_precision_score."""
    starts, order = _tie_groups(score)
    positive = np.add.reduceat(weights[:, order] * y[order], starts, axis=1)
    both = np.add.reduceat(weights[:, order], starts, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(positive.cumsum(axis=1) / both.cumsum(axis=1))
        return np.asarray((positive * precision).sum(axis=1) / positive.sum(axis=1))


def _tie_groups(score: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]), order


def _finding(y: np.ndarray, score: np.ndarray) -> Dict[str, Any]:
    y, score = known_only(y, score)
    usable = bool(np.isfinite(score).all())
    defined = usable and _has_both(y)
    return {
        "auroc": float(roc_auc_score(y, score)) if defined else float("nan"),
        "auprc": float(average_precision_score(y, score)) if defined else float("nan"),
        "prevalence": float(np.mean(y)) if len(y) else float("nan"),
        "num_positive": int(np.sum(y)),
        "brier": brier_score(y, score),
        "ece": expected_calibration_error(y, score) if usable and len(y) else float("nan"),
    }


def _operating_point(y: np.ndarray, score: np.ndarray, threshold: float) -> Dict[str, float]:
    y, score = known_only(y, score)
    with np.errstate(invalid="ignore"):
        called = score >= threshold
    known = not np.isnan(threshold) and np.isfinite(score).all()
    positives, negatives = y == 1, y == 0
    return {
        "threshold": threshold,
        "sensitivity": float(called[positives].mean()) if known and positives.any() else float("nan"),
        "specificity": float((~called[negatives]).mean()) if known and negatives.any() else float("nan"),
    }


def check_replicates(num_bootstrap: int) -> None:
    """Raise UserError for too few bootstrap replicates for an interval, or too many for memory."""
    if not 2 <= num_bootstrap <= 100_000:
        raise UserError(f"num_bootstrap {num_bootstrap} must be at least 2 and at most 100000. 1000 is usual.")


def patient_bootstrap(
    truth: np.ndarray, probability: np.ndarray, patients: Sequence[Any], num_bootstrap: int, seed: int
) -> Dict[str, np.ndarray]:
    """{"auroc", "auprc"}: (num_bootstrap, num_findings); NaN where a replicate drew one class only."""
    generator = np.random.default_rng(seed)
    unique, position = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    shape = (num_bootstrap, truth.shape[1])
    replicates = {"auroc": np.full(shape, np.nan), "auprc": np.full(shape, np.nan)}
    chunk = max(1, int(2e7 // max(1, len(truth))))
    for start in range(0, num_bootstrap if len(unique) else 0, chunk):
        size = min(chunk, num_bootstrap - start)
        drawn = generator.multinomial(len(unique), np.full(len(unique), 1.0 / len(unique)), size=size)
        weights = drawn[:, position.reshape(-1)].astype(np.float64)
        for column in range(truth.shape[1]):
            known = ~np.isnan(truth[:, column])
            y, score = known_only(truth[:, column].astype(np.float64), probability[:, column])
            if _has_both(y) and np.isfinite(score).all():
                rows, of_known = slice(start, start + size), weights if known.all() else weights[:, known]
                replicates["auroc"][rows, column] = weighted_auroc(y, score, of_known)
                replicates["auprc"][rows, column] = weighted_average_precision(y, score, of_known)
    return replicates


def _subgroups(
    truth: np.ndarray,
    probability: np.ndarray,
    findings: Sequence[str],
    table: Mapping[str, Sequence[Any]],
    num_bootstrap: int,
    seed: int,
) -> Dict[str, Any]:
    """{"sex" | "age" | "view": {value: {num_images, mean_auroc_14 and its interval, defined_findings, per_finding}}}."""
    patients = np.asarray(table["patient_id"], dtype=str)
    groups: Dict[str, Any] = {}
    for field, values in (("sex", table.get("sex")), ("age", table.get("age")), ("view", table.get("view"))):
        if values is None:
            continue
        names = [_age_band(value) if field == "age" else str(value or "unknown") for value in values]
        groups[field] = {}
        for name in sorted(set(names)):
            inside = np.array([other == name for other in names])
            rows = {
                finding: _finding(truth[inside, column], probability[inside, column])["auroc"]
                for column, finding in enumerate(findings)
            }
            defined = [value for value in rows.values() if not np.isnan(value)]
            drawn = patient_bootstrap(truth[inside], probability[inside], patients[inside], num_bootstrap, seed)
            groups[field][name] = {
                "num_images": int(inside.sum()),
                "mean_auroc_14": _mean(defined),
                "mean_auroc_14_interval": _interval(_row_means(drawn["auroc"])),
                "defined_findings": len(defined),
                "too_few_images": bool(inside.sum() < SMALLEST_SUBGROUP),
                "per_finding": rows,
            }
    return groups


def _age_band(age: Any) -> str:
    low, high = next(((low, high) for low, high in AGE_BANDS if age is not None and low <= age < high), (None, 0))
    return "unknown" if low is None else f"{low}-{high - 1}" if high < 200 else f"{low}+"


def _interval(values: np.ndarray) -> List[float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return [float("nan")] * 2
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def _row_means(values: np.ndarray) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(values, axis=1) / counts)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _has_both(y: np.ndarray) -> bool:
    return bool(len(y)) and bool(np.any(y == 1)) and bool(np.any(y == 0))


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
