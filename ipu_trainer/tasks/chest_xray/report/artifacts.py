"""What a run leaves behind for people: a table, pictures, a predictions file and a model card."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
from sklearn.metrics import roc_curve

from ipu_trainer.atomic import atomic_path, write_json, write_text
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.reporting.curves import new_figure


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Per-finding rows, the macro mean of exactly these rows, and "No Finding" apart."""
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
    """predictions.csv, metrics.txt, plots and, when these are there, metrics.json of one evaluated split."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.txt", metrics_table(metrics) + "\n")
    write_text(folder / "predictions.csv", _predictions(truth, probability, findings, table))
    plot_evaluation(folder / "plots", metrics, truth, probability, findings)
    write_json(folder / "metrics.json", metrics)


def plot_evaluation(
    folder: Path, metrics: Mapping[str, Any], truth: np.ndarray, probability: np.ndarray, findings: Sequence[str]
) -> None:
    """auroc.png (forest plot), roc.png (curves), calibration.png."""
    from matplotlib import colormaps

    names = [name for name, row in metrics["per_finding"].items() if np.isfinite(row["auroc"])]
    columns = {name: list(findings).index(name) for name in names}

    figure = new_figure(figsize=(7, 0.8 + 0.34 * max(4, len(names))))
    axes = figure.subplots()
    for position, name in enumerate(sorted(names, key=lambda name: float(metrics["per_finding"][name]["auroc"]))):
        row = metrics["per_finding"][name]
        low, high = row["auroc_interval"]
        axes.plot([low, high], [position, position], color="#4878a8", linewidth=2)
        axes.plot(row["auroc"], position, "o", color="#1b3a5c")
        axes.text(
            -0.01,
            position,
            f"{name} ({row['num_positive']})",
            ha="right",
            va="center",
            transform=axes.get_yaxis_transform(),
        )
    mean = metrics["mean_auroc_14"]
    if np.isfinite(mean):
        axes.axvline(mean, color="#b04a4a", linestyle="--", label=f"macro mean {mean:.3f}")
        axes.legend(loc="lower right", frameon=False)
    axes.axvline(0.5, color="#999999", linewidth=0.8)
    axes.set_yticks([])
    axes.set_xlabel("AUROC with patient-bootstrap 95 % interval (positives in brackets)")
    _save(figure, folder / "auroc.png")

    figure = new_figure(figsize=(6.4, 6))
    axes = figure.subplots()
    colors = colormaps["tab20"]
    for position, name in enumerate(names):
        false_positive, true_positive, _ = roc_curve(truth[:, columns[name]], probability[:, columns[name]])
        label = f"{name} {metrics['per_finding'][name]['auroc']:.2f}"
        axes.plot(false_positive, true_positive, color=colors(position % 20), linewidth=1.2, label=label)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_title("ROC by finding")
    if names:
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    _save(figure, folder / "roc.png")

    figure = new_figure(figsize=(5, 5))
    axes = figure.subplots()
    if names:
        chosen = [columns[name] for name in names]
        score, y = probability[:, chosen].ravel(), truth[:, chosen].ravel()
        edges = np.unique(np.quantile(score, np.linspace(0, 1, 11)))
        bins = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, max(0, len(edges) - 2))
        points = [(score[bins == b].mean(), y[bins == b].mean()) for b in np.unique(bins)]
        axes.plot([x for x, _ in points], [v for _, v in points], "o-", color="#1b3a5c")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set_xlabel("mean probability (tenths of the predictions)")
    axes.set_ylabel("observed rate")
    axes.set_title("Calibration, all findings")
    _save(figure, folder / "calibration.png")


def model_card(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """README.md of the model folder, as Hugging Face's hub shows it."""
    synthetic = run.get("synthetic_data")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-classification",
        "tags: [chest-x-ray, multi-label, vit, ipu_trainer]",
        "---",
        "# Chest X-ray findings, multi-label",
        "",
        "**Not for clinical use.** "
        + (
            "Trained on synthetic phantoms: it has never seen a patient."
            if synthetic
            else "Labels of NIH ChestX-ray14 are mined from reports, not read by radiologists for this purpose."
        ),
        "",
        f"Fine-tuned from `{run['model']}`; {len(run['findings'])} outputs, each through a sigmoid: "
        + ", ".join(run["findings"])
        + ".",
        "",
        f"## Evaluation ({run['evaluated_split']} split, {run['split_method']}: patients unseen in training)"
        if run["split_method"] != "random-images"
        else "## Evaluation (random image split: patients are in training too, so these numbers mean little)",
        "",
        "```",
        metrics_table(metrics),
        "```",
        "",
        "Thresholds for sensitivity and specificity were chosen on the validation split.",
        "",
        "## Subgroups",
        "",
        "| group | images | findings with both classes | mean AUROC |",
        "|---|---|---|---|",
    ]
    for field, groups in metrics["subgroups"].items():
        for name, group in groups.items():
            few = " (too few)" if group["too_few_images"] else ""
            lines.append(
                f"| {field} {name} | {group['num_images']}{few} | {group['defined_findings']} | "
                f"{_number(group['mean_auroc_14'])} |"
            )
    lines += [
        "",
        "## How it was trained",
        "",
        f"Backend {run['backend']['name']} ({run['backend']['reason']}), precision {run['precision']['name']}, seed {run['seed']}, "
        f"data fingerprint `{run['data']['fingerprint']}`. All settings: `run.json`.",
        "",
        "```",
        run["batch_table"],
        "```",
    ]
    return "\n".join(lines) + "\n"


def _predictions(
    truth: np.ndarray, probability: np.ndarray, findings: Sequence[str], table: Mapping[str, Sequence[Any]]
) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: List[str] = ["file_name", "patient_id"]
    header += [f"truth_{name}" for name in findings] + [f"probability_{name}" for name in findings]
    writer.writerow(header)
    for position in range(len(truth)):
        cells: List[Any] = [table["file_name"][position], table["patient_id"][position]]
        cells += [int(value) for value in truth[position]] + [f"{value:.6f}" for value in probability[position]]
        writer.writerow(cells)
    return out.getvalue()


def _line(name: str, row: Dict[str, Any], width: int) -> str:
    interval = f"{_number(row['auroc_interval'][0])} - {_number(row['auroc_interval'][1])}"
    return (
        f"{name:{width}}  {_number(row['auroc']):>6}  {interval:>15}  {_number(row['auprc']):>6}  "
        f"{100 * row['prevalence']:>9.1f}%  {_number(row.get('sensitivity', float('nan'))):>6}  "
        f"{_number(row.get('specificity', float('nan'))):>6}"
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "NaN"


def _save(figure: Any, file: Path) -> None:
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight")
