"""Files that an evaluation leaves beside metrics.json: metrics.txt, predictions.csv, plots, and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

import numpy as np

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import predictions_csv
from ipu_trainer.tasks.chest_xray.report.finding_figures import plot_evaluation


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A text table: a row a finding, the macro mean of these rows, and "No Finding", which the mean leaves out."""
    rows = list(metrics["per_finding"].items())
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{'finding':{width}}  {'AUROC':>6}  {'95 % interval':>15}  {'AUPRC':>6}  {'prevalence':>10}  {'sens.':>6}  {'spec.':>6}"
    ]
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
    if metrics["undefined_findings"]:
        lines.append(f"undefined (one class only): {', '.join(metrics['undefined_findings'])}")
    lines.append(
        f"{metrics['num_images']:,} images of {metrics['num_patients']:,} patients; intervals resample patients"
    )
    return "\n".join(lines)


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
    write_text(folder / "predictions.csv", predictions_csv(truth, probability, findings, table))
    plot_evaluation(folder / "plots", metrics, truth, probability, findings)
    write_json(folder / "metrics.json", metrics)


def model_card(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Text of the model folder's README.md, in the Hugging Face Hub's format."""
    caution = "Labels of NIH ChestX-ray14 were mined from reports; no radiologist labelled the images for this purpose."
    if run.get("synthetic_data"):
        caution = "Trained on synthetic phantoms: it has never seen a patient."
    evaluation = f"{run['evaluated_split']} split, {run['split_method']}: patients unseen in training"
    if run["split_method"] == "random-images":
        evaluation = "random image split: patients are in training too, so these numbers are too optimistic"
    groups = [
        f"| {field} {name} | {group['num_images']}{' (too few)' if group['too_few_images'] else ''} | "
        f"{group['defined_findings']} | {_number(group['mean_auroc_14'])} |\n"
        for field, values in metrics["subgroups"].items()
        for name, group in values.items()
    ]
    return f"""---
library_name: transformers
pipeline_tag: image-classification
tags: [chest-x-ray, multi-label, vit, ipu_trainer]
---
# Chest X-ray findings, multi-label

**Not for clinical use.** {caution}

Fine-tuned from `{run["model"]}`; {len(run["findings"])} outputs, each through a sigmoid: {", ".join(run["findings"])}.

## Evaluation ({evaluation})

```
{metrics_table(metrics)}
```

Thresholds for sensitivity and specificity were chosen on the validation split.

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
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "NaN"
