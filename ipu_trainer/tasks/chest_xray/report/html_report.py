"""report.html of a chest X-ray run or evaluation, or of several side by side; `ipu-trainer report RUN...` writes it.

It reads the files of the run (run.json, metrics.json, predictions.csv, history.json, the model) and, for images, the prepared
data that were evaluated. Where something is missing, the report says so and how to add it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.finding_names import same_finding
from ipu_trainer.tasks.chest_xray.data.labels import MINED_LABELS
from ipu_trainer.tasks.chest_xray.data.splits import PATIENTS_UNKNOWN
from ipu_trainer.tasks.chest_xray.evaluation.metrics import mean_auroc, patient_bootstrap
from ipu_trainer.tasks.chest_xray.evaluation.radiologist_labels import RadiologistLabels, read_radiologist_labels
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Evaluation, load_evaluation
from ipu_trainer.tasks.chest_xray.explain.evaluated_images import EvaluatedImages
from ipu_trainer.tasks.chest_xray.explain.pointing_game import read_boxes
from ipu_trainer.tasks.chest_xray.report.artifacts import auroc_point, of_patients
from ipu_trainer.tasks.chest_xray.report.image_sections import Boxes, example_blocks, localisation_blocks
from ipu_trainer.tasks.chest_xray.report.metric_sections import (
    MOST_CARDS,
    auroc_blocks,
    calibration_blocks,
    card_blocks,
    radiologist_blocks,
    subgroup_blocks,
    threshold_blocks,
)
from ipu_trainer.tasks.reporting.drawing import forest, to_svg
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Drawing,
    Page,
    Section,
    SideBySide,
    Table,
    Text,
    Tiles,
    interval,
    number,
    write_page,
)
from ipu_trainer.tasks.reporting.run_comparison import (
    ComparedRun,
    Headline,
    check_runs,
    comparison_page,
    distinct_names,
)
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, ValidationMetric, run_page

METRIC = ValidationMetric("eval_mean_auroc_14", "validation AUROC, macro mean")
WORKLOAD = ("image-classification",)


def write_report(
    folder: Path,
    output: Optional[Path] = None,
    boxes: Optional[Path] = None,
    radiologist_labels: Optional[Path] = None,
    data: Optional[Path] = None,
) -> Path:
    """Write report.html of a run or an evaluation, into its folder or to output; returns the path.

    data: the folder that the prepared data moved to. Raises UserError for a folder that is no finished run, and for boxes or
    labels that cannot be read.
    """
    boxes_by_name = read_boxes(boxes) if boxes else None
    labels = read_radiologist_labels(radiologist_labels) if radiologist_labels else None
    evaluation = load_evaluation(folder)
    file = Path(output) if output else Path(folder) / REPORT_FILE
    images = _evaluated_images(evaluation, data)
    for reason in filter(None, (images.why_no_images, images.why_no_maps)):
        print(f"warning: {reason}", file=sys.stderr)  # the page says so too, to those who open it
    write_page(file, evaluation_page(evaluation, images, boxes_by_name, labels))
    return file


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write one page that compares several runs or evaluations; returns the path."""
    evaluations = [load_evaluation(folder) for folder in folders]
    check_runs([evaluation.run.task for evaluation in evaluations])
    names = distinct_names(folders)
    columns = [
        ComparedRun(
            e.run, name, headline(e), f"{e.split} split of data {e.fingerprint[:8]}, {e.metrics['num_images']:,} images"
        )
        for e, name in zip(evaluations, names)
    ]
    results = [
        Section("Differences", difference_blocks(evaluations, names)),
        Section("AUROC by finding", forest_blocks(evaluations, names)),
    ]
    write_page(output, comparison_page(columns, notice(*evaluations), METRIC, results))
    return Path(output)


def evaluation_page(
    evaluation: Evaluation,
    images: EvaluatedImages,
    boxes: Optional[Boxes] = None,
    labels: Optional[RadiologistLabels] = None,
) -> Page:
    results = [
        Section("AUROC by finding", auroc_blocks(evaluation)),
        Section("Curves by finding", card_blocks(evaluation)),
        Section("Calibration", calibration_blocks(evaluation)),
        Section("Thresholds", threshold_blocks(evaluation)),
        Section("Subgroups", subgroup_blocks(evaluation.metrics)),
        Section("Best and worst predictions", example_blocks(evaluation, images, boxes or {})),
        Section("Localisation", localisation_blocks(evaluation, images, boxes)),
        Section("Radiologists' labels", radiologist_blocks(evaluation, labels, images.all_images)),
    ]
    of_run = evaluation.folder == evaluation.run.folder
    title = f"Chest X-rays: {evaluation.run.name}" + ("" if of_run else f", evaluated in {evaluation.folder.name}")
    return run_page(evaluation.run, title, notice(evaluation), tiles(evaluation), results, METRIC, WORKLOAD)


def notice(*evaluations: Evaluation) -> str:
    records = [evaluation.run.record for evaluation in evaluations]
    sentences = ["Not for clinical use."]
    if all(record.get("synthetic_data") for record in records):
        sentences.append("Trained on synthetic phantoms: the numbers say nothing about patients.")
    else:
        sources = [evaluation.metrics.get("label_source") for evaluation in evaluations]
        found = [source or record.get("label_source", MINED_LABELS) for source, record in zip(sources, records)]
        sentences += dict.fromkeys(found)
    # A split says nothing about the images of another data set.
    records = [e.run.record for e in evaluations if e.fingerprint == e.run.record["data"]["fingerprint"]]
    if any(record["split_method"] == "random-images" for record in records):
        sentences.append(
            "The split is by image: patients are in training and evaluation, so the numbers are too optimistic."
        )
    if any(record["split_method"] in PATIENTS_UNKNOWN for record in records):
        sentences.append(
            "The data names no patients: they may be in training and evaluation, so the numbers may be too optimistic."
        )
    if any(evaluation.seen_in_training == "training" for evaluation in evaluations):
        sentences.append(
            "The model was trained on some or all of the evaluated images, so the numbers are too optimistic."
        )
    return " ".join(sentences)


def headline(evaluation: Evaluation) -> Headline:
    """The numbers by which runs are compared."""
    metrics = evaluation.metrics
    rows = [
        ("AUROC, macro mean", metrics["mean_auroc_14"], metrics["mean_auroc_14_interval"]),
        ("AUPRC, macro mean", metrics["mean_auprc_14"], None),
    ]
    if "no_finding" in metrics:
        no_finding = metrics["no_finding"]
        rows.append(("AUROC, No Finding (apart)", no_finding["auroc"], no_finding["auroc_interval"]))
    return rows


def tiles(evaluation: Evaluation) -> Tiles:
    metrics = evaluation.metrics
    rows = [
        (name, number(value), f"95 % {interval(bounds)}" if bounds else "")
        for name, value, bounds in headline(evaluation)
    ]
    name, value, detail = rows[0]
    rows[0] = (name, value, f"{detail}; {len(evaluation.defined)} of {len(evaluation.findings)} findings")
    patients = f"{of_patients(metrics)}, {evaluation.split} split"
    return Tiles([*rows, ("images", f"{metrics['num_images']:,}", patients)])


def _evaluated_images(evaluation: Evaluation, data: Optional[Path]) -> EvaluatedImages:
    """The evaluated images with the model, or the reason why they are not available.

    Raises UserError if data is given and is not the data set that was evaluated.
    """
    folder = Path(data) if data else evaluation.data
    try:
        prepared = load_prepared(folder)
        if prepared.fingerprint != evaluation.fingerprint:
            raise UserError(
                f"{folder} holds other data (fingerprint {prepared.fingerprint}) than were evaluated "
                f"({evaluation.fingerprint}). Give the folder that was evaluated."
            )
    except ValueError as error:
        if data:
            raise
        return EvaluatedImages(why_no_images=f"{error} If the data moved: ipu-trainer report RUN --data FOLDER.")
    return EvaluatedImages.of_run(evaluation.run.folder, evaluation.predictions.findings, prepared, evaluation.split)


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
    pairs = [(name, same_finding(name, other.defined)) for name in first.defined]
    findings = [name for name, found in pairs if found is not None]
    others = [found for _, found in pairs if found is not None]
    if not rows or not findings:
        return None
    other_rows = [places[first.predictions.file_names[row]] for row in rows]
    truth = np.stack([first.column(name)[0][rows] for name in findings], axis=1)
    patients = [first.predictions.patient_ids[row] for row in rows]
    bootstrap = first.metrics["bootstrap"]
    means, replicates = [], []
    for evaluation, chosen, names in ((first, rows, findings), (other, other_rows, others)):
        probability = np.stack([evaluation.column(name)[1][chosen] for name in names], axis=1)
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
    drawing = Drawing(to_svg(forest(points, legend=names)), "AUROC with bootstrap 95 % intervals")
    blocks: List[Block] = [drawing, Table(["finding", *names], table)]
    return [SideBySide(blocks)] if len(names) == 2 else blocks
