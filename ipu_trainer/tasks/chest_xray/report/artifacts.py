"""Files that an evaluation leaves beside metrics.json: metrics.txt, predictions.csv, the model card, and plots.

The figures by finding (ROC, precision-recall, reliability, AUROC) are those of report.html too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.tasks.chest_xray.data.labels import MINED_LABELS, NO_FINDING
from ipu_trainer.tasks.chest_xray.data.splits import PATIENTS_UNKNOWN
from ipu_trainer.tasks.chest_xray.evaluation.metrics import ReliabilityBin, known_only, reliability
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import (
    PREDICTIONS_FILE,
    number_or_nan,
    predictions_csv,
    predictions_digest,
)
from ipu_trainer.tasks.reporting.drawing import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    draw_curves,
    forest,
    save_png,
    styled_figure,
    thinned,
)

_MOST_POINTS = 120


def plot_evaluation(
    folder: Path, metrics: Mapping[str, Any], truth: np.ndarray, probability: np.ndarray, findings: Sequence[str]
) -> None:
    """Write auroc.png (forest plot), roc.png (curves of all findings) and calibration.png."""
    names = [name for name, row in metrics["per_finding"].items() if np.isfinite(row["auroc"])]
    columns = [list(findings).index(name) for name in names]
    save_png(folder / "auroc.png", auroc_forest(metrics, names))
    lines = []
    for name, column in zip(names, columns):
        false_positive, true_positive, _ = roc_curve(*known_only(truth[:, column], probability[:, column]))
        lines.append((f"{name} {metrics['per_finding'][name]['auroc']:.2f}", false_positive, true_positive))
    with styled_figure(6.4, 6) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8)
        draw_curves(axes, lines, "1 - specificity", "sensitivity")
    save_png(folder / "roc.png", figure)
    save_png(
        folder / "calibration.png", calibration(*known_only(truth[:, columns].ravel(), probability[:, columns].ravel()))
    )


def auroc_forest(metrics: Mapping[str, Any], names: Sequence[str]) -> Any:
    """AUROC with intervals of these findings, the highest first, and their macro mean."""
    ordered = sorted(names, key=lambda name: -float(metrics["per_finding"][name]["auroc"]))
    rows = [
        (f"{name} ({metrics['per_finding'][name]['num_positive']})", [auroc_point(metrics["per_finding"][name])])
        for name in ordered
    ]
    mean = number_or_nan(metrics["mean_auroc_14"])
    return forest(rows, line=(mean, f"macro mean {mean:.3f}"))


def finding_card(y: np.ndarray, score: np.ndarray, threshold: float = float("nan")) -> Any:
    """ROC, precision-recall and reliability of one finding with both classes; a dot marks the threshold."""
    margins = {"left": 0.095, "bottom": 0.23, "right": 0.97, "top": 0.88, "wspace": 0.52}
    with styled_figure(4.6, 1.75, columns=3, margins=margins) as (figure, axes):
        predicted = score >= threshold
        positives, negatives = y == 1, y == 0
        false_positive, true_positive, _ = roc_curve(y, score)
        axes[0].plot([0, 1], [0, 1], color=GRAY, linewidth=0.6)
        axes[0].plot(*thinned(false_positive, true_positive, _MOST_POINTS), color=BLUE, linewidth=1.2)
        precision, recall, _ = precision_recall_curve(y, score)
        axes[1].axhline(float(np.mean(y)), color=GRAY, linewidth=0.6)
        axes[1].step(*thinned(recall, precision, _MOST_POINTS), where="pre", color=GREEN, linewidth=1.2)
        if np.isfinite(threshold):
            sensitivity = predicted[positives].mean()
            axes[0].plot([predicted[negatives].mean()], [sensitivity], "o", color=RED, markersize=4)
            if predicted.any():
                axes[1].plot([sensitivity], [y[predicted].mean()], "o", color=RED, markersize=4)
        _draw_reliability(axes[2], reliability(y, score, 6))
        titles = ("ROC", "precision - recall", "reliability")
        labels = (("1 - specificity", "sensitivity"), ("recall", "precision"), ("mean probability", "observed rate"))
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
    return figure


def calibration(y: np.ndarray, score: np.ndarray) -> Any:
    """Reliability of the predictions of all findings together."""
    with styled_figure(4.6, 3.2) as (figure, (axes,)):
        _draw_reliability(axes, reliability(y, score))
        axes.set_xlabel("mean probability (deciles of the predictions)")
        axes.set_ylabel("observed rate, 95 % interval")
    return figure


def _draw_reliability(axes: Any, bins: Sequence[ReliabilityBin]) -> None:
    x, y = [b.probability for b in bins], [b.rate for b in bins]
    top = max([*x, *(b.high for b in bins), 0.05]) * 1.05
    axes.plot([0, top], [0, top], color=GRAY, linewidth=0.6)
    if bins:
        errors = np.abs(np.array([[b.rate - b.low for b in bins], [b.high - b.rate for b in bins]]))
        axes.errorbar(x, y, yerr=errors, fmt="o-", color=ORANGE, markersize=2.5, linewidth=1.0, elinewidth=0.8)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)


def auroc_point(row: Mapping[str, Any]) -> Tuple[float, float, float]:
    """(value, low, high) of a row of metrics.json; NaN for null."""
    low, high = row.get("auroc_interval") or (None, None)
    return number_or_nan(row.get("auroc")), number_or_nan(low), number_or_nan(high)


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A text table: a row a finding, the macro mean of these rows, and "No Finding", which the mean leaves out.

    A last column has the number of known labels where some are unknown.
    """
    rows = list(metrics["per_finding"].items())
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{'finding':{width}}  {'AUROC':>6}  {'95 % interval':>15}  {'AUPRC':>6}  {'prevalence':>10}  {'sens.':>6}  {'spec.':>6}"
    ]
    lines[0] += f"  {'known':>7}" if any("num_known" in row for _, row in rows) else ""
    lines += [_line(name, row, width) for name, row in rows]
    low, high = metrics["mean_auroc_14_interval"]
    lines.append("-" * len(lines[0]))
    interval = f"{_number(low)} - {_number(high)}"
    lines.append(
        f"{'macro mean':{width}}  {_number(metrics['mean_auroc_14']):>6}  {interval:>15}  "
        f"{_number(metrics['mean_auprc_14']):>6}"
    )
    if "no_finding" in metrics:
        lines.append(_line(NO_FINDING, metrics["no_finding"], width) + "  (apart)")
    unlabelled = without_known_label(metrics)
    one_class = [name for name in metrics["undefined_findings"] if name not in unlabelled]
    if one_class:
        lines.append(f"undefined (one class only): {', '.join(one_class)}")
    if unlabelled:
        lines.append(f"undefined (no known label): {', '.join(unlabelled)}")
    lines.append(f"{metrics['num_images']:,} images {of_patients(metrics)}; intervals resample {resampled(metrics)}")
    return "\n".join(lines)


def without_known_label(metrics: Mapping[str, Any]) -> List[str]:
    """The reported findings of which no image has a known label."""
    return [name for name, row in metrics["per_finding"].items() if row.get("num_known") == 0]


def of_patients(metrics: Mapping[str, Any]) -> str:
    """ "of 12 patients", "of 12 studies, patients unknown", or "of unknown patients"."""
    units = resampled(metrics)
    if units == "images":
        return "of unknown patients"
    return f"of {metrics['num_patients']:,} {units}{', patients unknown' if units == 'studies' else ''}"


def resampled(metrics: Mapping[str, Any]) -> str:
    """What the intervals of these metrics resample: patients, or studies or images of data without patient ids."""
    unit = metrics.get("bootstrap", {}).get("unit", "patient")
    return {"patient": "patients", "study": "studies", "image": "images"}[unit]


def write_evaluation(
    folder: Path,
    metrics: Mapping[str, Any],
    truth: np.ndarray,
    probability: np.ndarray,
    findings: Sequence[str],
    table: Mapping[str, Sequence[Any]],
) -> None:
    """Write predictions.csv, metrics.txt and plots of one evaluated split, and then metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.txt", metrics_table(metrics) + "\n")
    predictions = predictions_csv(truth, probability, findings, table)
    write_text(folder / PREDICTIONS_FILE, predictions)
    plot_evaluation(folder / "plots", metrics, truth, probability, findings)
    digests = {PREDICTIONS_FILE: predictions_digest(predictions.encode("utf-8"))}
    write_json(folder / "metrics.json", {**metrics, "digests": digests})


def model_card(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Text of the model folder's README.md, in the Hugging Face Hub's format."""
    caution = run.get("label_source", MINED_LABELS)
    if run.get("synthetic_data"):
        caution = "Trained on synthetic phantoms: it has never seen a patient."
    evaluation = f"{run['evaluated_split']} split, {run['split_method']}: patients unseen in training"
    if run["split_method"] == "random-images":
        evaluation = "random image split: patients are in training too, so these numbers are too optimistic"
    elif run["split_method"] in PATIENTS_UNKNOWN:
        evaluation = (
            f"{run['evaluated_split']} split, {run['split_method']}: the data names no patients, so these may be in training too, "
            "and these numbers may be too optimistic"
        )
    groups = [
        f"| {field} {name} | {group['num_images']}{' (too few)' if group['too_few_images'] else ''} | "
        f"{group['defined_findings']} | {_number(group['mean_auroc_14'])} |\n"
        for field, values in metrics["subgroups"].items()
        for name, group in values.items()
    ]
    return f"""---
library_name: transformers
pipeline_tag: image-classification
tags: [chest-x-ray, multi-label, ipu_trainer]
---
# Chest X-ray findings, multi-label

**Not for clinical use.** {caution}

Fine-tuned from `{run["model"]}`; {len(run["findings"])} outputs, each through a sigmoid: {", ".join(run["findings"])}.

## Evaluation ({evaluation})

```
{metrics_table(metrics)}
```

Thresholds for sensitivity and specificity were chosen on the validation split.

## Read new images

```
ipu-trainer predict THIS_FOLDER images/*.png --output predictions.csv
```

With Transformers: `pipeline("image-classification", model="THIS_FOLDER", top_k={len(run["findings"])})`. \
Without top_k the pipeline gives five of the {len(run["findings"])} findings.

## Subgroups

| group | images | findings with both classes | mean AUROC |
|---|---|---|---|
{"".join(groups)}
## How it was trained

Backend {run["backend"]["name"]} ({run["backend"]["reason"]}), precision {run["precision"]["name"]}, seed {run["seed"]}, \
data fingerprint `{run["data"]["fingerprint"]}`. All settings: `run.json`.

```
{run["batch_table"]}
```
"""


def _line(name: str, row: Dict[str, Any], width: int) -> str:
    interval = f"{_number(row['auroc_interval'][0])} - {_number(row['auroc_interval'][1])}"
    return (
        f"{name:{width}}  {_number(row['auroc']):>6}  {interval:>15}  {_number(row['auprc']):>6}  "
        f"{100 * row['prevalence']:>9.1f}%  {_number(row.get('sensitivity', float('nan'))):>6}  "
        f"{_number(row.get('specificity', float('nan'))):>6}"
        + (f"  {row['num_known']:>7,}" if "num_known" in row else "")
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "NaN"
