"""The task's report page: what a radiologist and an engineer both read. `ipu-trainer report RUN` writes it.

It reads what the run left (run.json, metrics.json, predictions.csv, history.json, the model) and, for pictures, the prepared
data that was evaluated; what is not there is said, with the next move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.evaluation.evaluated_split import Evaluation, load_evaluation
from ipu_trainer.tasks.chest_xray.evaluation.predictions import choose_images
from ipu_trainer.tasks.chest_xray.evaluation.radiologists import (
    RadiologistLabels,
    read_radiologist_labels,
)
from ipu_trainer.tasks.chest_xray.explain.best_and_worst import prediction_blocks
from ipu_trainer.tasks.chest_xray.explain.boxes import Box, read_boxes
from ipu_trainer.tasks.chest_xray.explain.pointing_game import look_at_boxes, looking_blocks
from ipu_trainer.tasks.chest_xray.explain.saliency_images import Looking
from ipu_trainer.tasks.chest_xray.report.evaluation_comparison import difference_blocks, forest_blocks
from ipu_trainer.tasks.chest_xray.report.sections import (
    auroc_blocks,
    calibration_blocks,
    card_blocks,
    radiologist_blocks,
    subgroup_blocks,
    threshold_blocks,
)
from ipu_trainer.tasks.reporting.html_document import Block, Page, Section, Text, Tiles, interval, number, write_page
from ipu_trainer.tasks.reporting.run_comparison import Compared, check_runs, comparison_page, distinct_names
from ipu_trainer.tasks.reporting.run_report import REPORT_FILE, Watched, run_page

WATCHED = Watched("eval_mean_auroc_14", "validation AUROC, macro mean")
WORKLOAD = ("image-classification",)


@dataclass(frozen=True)
class ReportInputs:
    """What a report may be given besides its run: boxes, radiologists' labels, and where the prepared data are now."""

    boxes: Optional[Path] = None
    radiologist_labels: Optional[Path] = None
    data: Optional[Path] = None


def write_report(folder: Path, output: Optional[Path] = None, inputs: Optional[ReportInputs] = None) -> Path:
    """Write report.html of a run or an evaluation, into its folder or to output; returns the path.

    Raises ValueError for a folder that is no finished run, and for boxes or labels that cannot be read.
    """
    given = inputs or ReportInputs()
    boxes = read_boxes(given.boxes) if given.boxes else None
    labels = read_radiologist_labels(given.radiologist_labels) if given.radiologist_labels else None
    evaluation = load_evaluation(folder)
    file = Path(output) if output else Path(folder) / REPORT_FILE
    write_page(file, evaluation_page(evaluation, boxes, labels, given.data))
    return file


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write one page that holds several runs, or evaluations, side by side; returns the path."""
    evaluations = [load_evaluation(folder) for folder in folders]
    check_runs([evaluation.run.task for evaluation in evaluations])
    names = distinct_names(folders)
    columns = [
        Compared(
            e.run, name, headline(e), f"{e.split} split of data {e.fingerprint[:8]}, {e.metrics['num_images']:,} images"
        )
        for e, name in zip(evaluations, names)
    ]
    results = [
        Section("Differences", difference_blocks(evaluations, names)),
        Section("AUROC by finding", forest_blocks(evaluations, names)),
    ]
    write_page(output, comparison_page(columns, notice(*evaluations), WATCHED, results))
    return Path(output)


def evaluation_page(
    evaluation: Evaluation,
    boxes: Optional[Mapping[str, Sequence[Box]]] = None,
    labels: Optional[RadiologistLabels] = None,
    data: Optional[Path] = None,
) -> Page:
    looking = _looking(evaluation, data)
    results = [
        Section("AUROC by finding", auroc_blocks(evaluation)),
        Section("Curves by finding", card_blocks(evaluation)),
        Section("Calibration", calibration_blocks(evaluation)),
        Section("Thresholds", threshold_blocks(evaluation)),
        Section("Subgroups", subgroup_blocks(evaluation.metrics)),
        Section("Best and worst predictions", _prediction_section(evaluation, looking, boxes)),
        Section("Where the model looks", _looking_section(evaluation, looking, boxes)),
        Section("Radiologists' labels", radiologist_blocks(evaluation, labels, looking.everything)),
    ]
    own = evaluation.folder == evaluation.run.folder
    title = f"Chest X-rays: {evaluation.run.name}" + ("" if own else f", evaluated in {evaluation.folder.name}")
    return run_page(evaluation.run, title, notice(evaluation), tiles(evaluation), results, WATCHED, WORKLOAD)


def notice(*evaluations: Evaluation) -> str:
    records = [evaluation.run.record for evaluation in evaluations]
    words = ["Not for clinical use."]
    if all(record.get("synthetic_data") for record in records):
        words.append("Trained on synthetic phantoms, which are no patients: the numbers say nothing about medicine.")
    else:
        words.append("The labels were mined from reports by a program; no radiologist gave them for this purpose.")
    if any(record["split_method"] == "random-images" for record in records):
        words.append(
            "The split is by image: patients are in training and evaluation alike, so the numbers mean little."
        )
    if any(evaluation.seen_in_training == "training" for evaluation in evaluations):
        words.append("The model was trained on some or all of the evaluated images, so the numbers say little.")
    return " ".join(words)


def headline(evaluation: Evaluation) -> List[Tuple[str, Any, Any]]:
    """(name, value, interval) of what runs are compared by."""
    metrics = evaluation.metrics
    rows = [
        ("AUROC, macro mean", metrics["mean_auroc_14"], metrics["mean_auroc_14_interval"]),
        ("AUPRC, macro mean", metrics["mean_auprc_14"], None),
    ]
    if "no_finding" in metrics:
        apart = metrics["no_finding"]
        rows.append(("AUROC, No Finding (apart)", apart["auroc"], apart["auroc_interval"]))
    return rows


def tiles(evaluation: Evaluation) -> Tiles:
    metrics = evaluation.metrics
    rows = [
        (name, number(value), f"95 % {interval(bounds)}" if bounds else "")
        for name, value, bounds in headline(evaluation)
    ]
    rows[0] = (
        rows[0][0],
        rows[0][1],
        f"{rows[0][2]}; {len(evaluation.defined)} of {len(evaluation.findings)} findings",
    )
    rows.append(
        ("images", f"{metrics['num_images']:,}", f"of {metrics['num_patients']:,} patients, {evaluation.split} split")
    )
    return Tiles(rows)


def _looking(evaluation: Evaluation, data: Optional[Path]) -> Looking:
    """The evaluated images and the model, or why they are not at hand."""
    folder = Path(data) if data else evaluation.data
    try:
        prepared = load_prepared(folder)
    except ValueError as error:
        if data:
            raise
        return Looking(reason=f"{error} If the prepared data have moved: ipu-trainer report RUN --data FOLDER.")
    if prepared.fingerprint != evaluation.fingerprint:
        message = f"{folder} holds other data (fingerprint {prepared.fingerprint}) than was evaluated ({evaluation.fingerprint})."
        if data:
            raise UserError(f"{message} Give the folder that was evaluated.")
        return Looking(reason=f"{message} Give it with --data.")
    subject = prepared.split(evaluation.split)
    return Looking.of_run(evaluation.run.folder, evaluation.predictions.findings, prepared, subject)


def _prediction_section(
    evaluation: Evaluation, looking: Looking, boxes: Optional[Mapping[str, Sequence[Box]]]
) -> List[Block]:
    return prediction_blocks(
        evaluation.predictions, choose_images(evaluation.predictions), evaluation.thresholds, looking, boxes or {}
    )


def _looking_section(
    evaluation: Evaluation, looking: Looking, boxes: Optional[Mapping[str, Sequence[Box]]]
) -> List[Block]:
    if boxes is None:
        return [
            Text(
                "The pointing game was not played. With the boxes that radiologists drew (NIH's BBox_List_2017.csv): "
                "ipu-trainer report RUN --boxes FILE.",
                "note",
            )
        ]
    return looking_blocks(look_at_boxes(evaluation.predictions, looking, boxes), looking)
