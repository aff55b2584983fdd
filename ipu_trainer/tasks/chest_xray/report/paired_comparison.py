"""Evaluations compared: AUROC by finding, and differences of the macro mean paired on the same resampled patients."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.evaluation.metrics import mean_auroc, patient_bootstrap
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Evaluation
from ipu_trainer.tasks.chest_xray.report.finding_figures import auroc_point
from ipu_trainer.tasks.chest_xray.report.metric_sections import MOST_CARDS
from ipu_trainer.tasks.reporting.drawing import forest, to_svg
from ipu_trainer.tasks.reporting.html_document import Block, Drawing, SideBySide, Table, Text, interval, number


def difference_blocks(evaluations: Sequence[Evaluation], names: Sequence[str]) -> List[Block]:
    """Each run's macro mean minus the first's, on the images that both predicted."""
    rows = []
    for other, name in zip(evaluations[1:], names[1:]):
        found = paired_difference(evaluations[0], other)
        if found is None:
            rows.append([name, "–", "–", "no image and finding in common"])
        else:
            images, difference, bounds = found
            clear = "excludes 0" if bounds[0] > 0 or bounds[1] < 0 else "includes 0"
            rows.append([name, f"{difference:+.3f}", f"{bounds[0]:+.3f} – {bounds[1]:+.3f} ({clear})", f"{images:,}"])
    return [
        Table(["run", f"AUROC, macro mean, minus that of {names[0]}", "95 % interval", "images in common"], rows),
        Text(
            "Paired bootstrap: both runs are scored on the same resampled patients, so the difficulty of the images cancels out. "
            "The interval covers the choice of patients, not the variation between training seeds.",
            "note",
        ),
    ]


def paired_difference(first: Evaluation, other: Evaluation) -> Optional[Tuple[int, float, Tuple[float, float]]]:
    """(images, other's macro mean minus first's, 95 % interval) on common images and findings; None without any."""
    places = {name: row for row, name in enumerate(other.predictions.file_names)}
    rows = [row for row, name in enumerate(first.predictions.file_names) if name in places]
    findings = [name for name in first.defined if name in other.defined]
    if not rows or not findings:
        return None
    other_rows = [places[first.predictions.file_names[row]] for row in rows]
    truth = np.stack([first.column(name)[0][rows] for name in findings], axis=1)
    patients = [first.predictions.patient_ids[row] for row in rows]
    bootstrap = first.metrics["bootstrap"]
    means, replicates = [], []
    for evaluation, chosen in ((first, rows), (other, other_rows)):
        probability = np.stack([evaluation.column(name)[1][chosen] for name in findings], axis=1)
        means.append(mean_auroc(truth, probability, findings))
        drawn = patient_bootstrap(truth, probability, patients, bootstrap["replicates"], bootstrap["seed"])["auroc"]
        replicates.append(np.nanmean(drawn, axis=1))
    low, high = np.nanpercentile(replicates[1] - replicates[0], [2.5, 97.5])
    return len(rows), means[1] - means[0], (float(low), float(high))


def forest_blocks(evaluations: Sequence[Evaluation], names: Sequence[str]) -> List[Block]:
    findings = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.findings))
    series = [
        [auroc_point(evaluation.metrics["per_finding"].get(name, {})) for evaluation in evaluations]
        for name in findings
    ]
    order = sorted(
        range(len(findings)), key=lambda i: -max([v for v, _, _ in series[i] if np.isfinite(v)], default=-1.0)
    )
    points = [(findings[i], series[i]) for i in order[: 2 * MOST_CARDS]]
    table = [[findings[i], *(f"{number(v)} ({interval((low, high))})" for v, low, high in series[i])] for i in order]
    drawing = Drawing(to_svg(forest(points, legend=names)), "AUROC with patient-bootstrap 95 % intervals")
    blocks: List[Block] = [drawing, Table(["finding", *names], table)]
    return [SideBySide(blocks)] if len(names) == 2 else blocks
