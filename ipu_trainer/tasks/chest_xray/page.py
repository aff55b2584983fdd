"""The task's report page: what a radiologist and an engineer both read. `ipu-trainer report RUN` writes it.

It reads what the run left (run.json, metrics.json, predictions.csv, history.json, the model) and, for pictures, the prepared
data that was evaluated; what is not there is said, with the next move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.boxes import Box, file_name, read_boxes
from ipu_trainer.tasks.chest_xray.calibration import brier_score
from ipu_trainer.tasks.chest_xray.dataset import ChestXrayDataset, load_prepared
from ipu_trainer.tasks.chest_xray.figures import calibration, finding_card
from ipu_trainer.tasks.chest_xray.labels import NO_FINDING, pathologies
from ipu_trainer.tasks.chest_xray.looking import Looking, look_at_boxes, looking_blocks, prediction_blocks
from ipu_trainer.tasks.chest_xray.metrics import SMALLEST_SUBGROUP, mean_auroc, patient_bootstrap
from ipu_trainer.tasks.chest_xray.predictions import Predictions, choose_images, read_predictions
from ipu_trainer.tasks.chest_xray.radiologists import RadiologistLabels, compare, matching, read_radiologist_labels
from ipu_trainer.tasks.pages.comparison import Compared, check_runs, comparison_page, distinct_names
from ipu_trainer.tasks.pages.drawing import forest
from ipu_trainer.tasks.pages.page import (
    Beside,
    Block,
    Cards,
    Drawing,
    Page,
    Section,
    Table,
    Text,
    Tiles,
    interval,
    number,
    write_page,
)
from ipu_trainer.tasks.pages.run import REPORT_FILE, Run, Watched, load_run, read_json, run_page
from ipu_trainer.tasks.record import METRICS_FILE, RUN_FILE

WATCHED = Watched("eval_mean_auroc_14", "validation AUROC, macro mean")
WORKLOAD = ("image-classification",)
# Drawings of more findings than this would make a page that nobody scrolls through; the tables have them all.
_MOST_CARDS = 30
_NAN = float("nan")


@dataclass(frozen=True)
class ReportInputs:
    """What a report may be given besides its run: boxes, radiologists' labels, and where the prepared data are now."""

    boxes: Optional[Path] = None
    radiologist_labels: Optional[Path] = None
    data: Optional[Path] = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluated split: of the run itself, or a folder that `evaluate` wrote. fingerprint is of the evaluated data."""

    run: Run
    folder: Path
    metrics: Mapping[str, Any]
    predictions: Predictions
    split: str
    data: Path
    fingerprint: str
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def findings(self) -> List[str]:
        """The findings that are reported, without "No Finding"."""
        return pathologies(self.predictions.findings)

    @property
    def defined(self) -> List[str]:
        """Those with both classes and with numbers for probabilities."""
        rows = self.metrics["per_finding"]
        return [name for name in self.findings if name in rows and rows[name].get("auroc") is not None]

    def column(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """(truth, probability) of one finding: (num_images,) each."""
        position = self.predictions.findings.index(name)
        return self.predictions.truth[:, position], self.predictions.probability[:, position]


def load_evaluation(folder: Path) -> Evaluation:
    """A run's folder, or a folder that `evaluate` wrote. Raises ValueError if it is neither."""
    folder = Path(folder)
    if (folder / RUN_FILE).is_file():
        run = load_run(folder)
        metrics, split = run.metrics, str(run.record["evaluated_split"])
        data, fingerprint = run.record["data"]["folder"], run.record["data"]["fingerprint"]
    else:
        metrics = read_json(folder / METRICS_FILE)
        if "run" not in metrics or "data" not in metrics:
            raise ValueError(f"{folder / METRICS_FILE} names no run and data. Evaluate the run again.")
        run = load_run(Path(metrics["run"]))
        split, data, fingerprint = str(metrics["split"]), metrics["data"], metrics["data_fingerprint"]
    predictions = read_predictions(folder / "predictions.csv")
    thresholds = {n: _NAN if v is None else float(v) for n, v in run.record.get("thresholds", {}).items()}
    return Evaluation(run, folder, metrics, predictions, split, Path(data), str(fingerprint), thresholds)


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
        Compared(e.run, name, headline(e), f"{e.split} split of {e.fingerprint}, {e.metrics['num_images']:,} images")
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
        Section("Radiologists' labels", radiologist_blocks(evaluation, labels)),
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
        words.append("The split is by image: patients are in training and evaluation alike, so the numbers mean little.")
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
        (name, number(value), f"95 % {interval(bounds)}" if bounds else "") for name, value, bounds in headline(evaluation)
    ]
    rows[0] = (rows[0][0], rows[0][1], f"{rows[0][2]}; {len(evaluation.defined)} of {len(evaluation.findings)} findings")
    rows.append(("images", f"{metrics['num_images']:,}", f"of {metrics['num_patients']:,} patients, {evaluation.split} split"))
    return Tiles(rows)


def auroc_blocks(evaluation: Evaluation) -> List[Block]:
    metrics = evaluation.metrics
    per_finding: Mapping[str, Any] = metrics["per_finding"]
    ordered = sorted(evaluation.defined, key=lambda name: -per_finding[name]["auroc"])
    drawings: List[Block] = []
    if ordered:
        rows = [
            (f"{name} ({per_finding[name]['num_positive']})", [_with_interval(per_finding[name], "auroc")])
            for name in ordered[: 2 * _MOST_CARDS]
        ]
        mean = _number(metrics["mean_auroc_14"])
        caption = "AUROC with its patient-bootstrap 95 % interval; in brackets the positive images. Grey: guessing."
        drawings.append(Drawing(forest(rows, line=(mean, f"macro mean {number(mean)}")), caption))
    others = [name for name in evaluation.findings if name not in ordered]
    blocks: List[Block] = []
    if others:
        blocks.append(Text("No AUROC: " + "; ".join(f"{name} ({_why(evaluation, name)})" for name in others) + ".", "warning"))
    table = []
    for name in [*ordered, *others]:
        table.append(_auroc_row(name, per_finding.get(name, {})))
    table.append(
        ["macro mean", number(metrics["mean_auroc_14"]), interval(metrics["mean_auroc_14_interval"])]
        + [number(metrics["mean_auprc_14"]), "", "", ""]
    )
    if "no_finding" in metrics:
        table.append(_auroc_row(f"{NO_FINDING} (apart)", metrics["no_finding"]))
    head = ["finding", "AUROC", "95 % interval", "AUPRC", "95 % interval", "prevalence", "positives"]
    blocks.append(Beside([*drawings, Table(head, table, [len(ordered) + len(others)])]))
    blocks.append(
        Text(
            "The macro mean is over the findings above with an AUROC. Intervals resample patients, "
            f"{metrics['bootstrap']['replicates']} times: images of one patient are not independent. AUPRC is to be read "
            "beside the prevalence, which guessing would reach.",
            "note",
        )
    )
    return blocks


def card_blocks(evaluation: Evaluation) -> List[Block]:
    per_finding = evaluation.metrics["per_finding"]
    names = sorted(evaluation.defined, key=lambda name: -per_finding[name]["num_positive"])
    if not names:
        return [Text("No finding has both classes and numbers for probabilities, so there is no curve to draw.", "warning")]
    cards = []
    for name in names[:_MOST_CARDS]:
        row = per_finding[name]
        caption = f"{name}: AUROC {number(row['auroc'])}, AUPRC {number(row['auprc'])}, {row['num_positive']} positives"
        cards.append(Drawing(finding_card(*evaluation.column(name), evaluation.thresholds.get(name, _NAN)), caption, "card"))
    blocks: List[Block] = [Cards(cards)]
    if len(names) > _MOST_CARDS:
        blocks.append(Text(f"Drawn are the {_MOST_CARDS} most frequent of {len(names)} findings.", "note"))
    blocks.append(
        Text("Red: the threshold that was chosen on validation. Grey: guessing, or perfect reliability.", "note")
    )
    return blocks


def calibration_blocks(evaluation: Evaluation) -> List[Block]:
    names = [name for name in evaluation.findings if np.isfinite(evaluation.column(name)[1]).all()]
    if not names or not len(evaluation.predictions):
        return [Text("The probabilities are no numbers, so there is nothing to hold against the outcomes.", "warning")]
    columns = [evaluation.column(name) for name in names]
    y, score = np.concatenate([y for y, _ in columns]), np.concatenate([s for _, s in columns])
    per_finding = evaluation.metrics["per_finding"]
    rows = []
    for name, (truth, probability) in zip(names, columns):
        guess = brier_score(truth, np.full(len(truth), truth.mean()))
        own = brier_score(truth, probability)
        skill = 1 - own / guess if guess else _NAN
        rows.append(
            [name, number(own, 4), number(skill, 2), number(per_finding.get(name, {}).get("ece"), 4)]
            + [number(float(probability.mean())), number(float(truth.mean()))]
        )
    drawing = Drawing(calibration(y, score), f"Reliability of {len(names)} findings together, {len(y):,} predictions")
    return [
        Beside([drawing, Table(["finding", "Brier", "skill", "ECE", "mean probability", "observed rate"], rows)]),
        Text(
            "Brier: mean squared distance of probability and outcome, 0 is perfect. Skill: the share by which it is below "
            "that of always saying the prevalence; under 0 the probabilities are worse than that. ECE: mean distance of "
            "probability and rate over 15 bins.",
            "note",
        ),
    ]


def threshold_blocks(evaluation: Evaluation) -> List[Block]:
    rows = []
    names = [*evaluation.findings, *(name for name in evaluation.predictions.findings if name == NO_FINDING)]
    for name in names:
        y, score = evaluation.column(name)
        threshold = evaluation.thresholds.get(name, _NAN)
        if not np.isfinite(threshold) or not np.isfinite(score).all():
            rows.append([name, number(threshold), *["–"] * 8])
            continue
        called = score >= threshold
        true_p, false_p = int((called & (y == 1)).sum()), int((called & (y == 0)).sum())
        false_n, true_n = int((~called & (y == 1)).sum()), int((~called & (y == 0)).sum())
        shares = [(true_p, false_n), (true_n, false_p), (true_p, false_p), (true_n, false_n)]
        rows.append(
            [name, number(threshold)]
            + [number(a / (a + b) if a + b else _NAN) for a, b in shares]
            + [str(count) for count in (true_p, false_p, false_n, true_n)]
        )
    head = ["finding", "threshold", "sensitivity", "specificity", "PPV", "NPV", "true +", "false +", "false -", "true -"]
    return [
        Table(head, rows),
        Text(
            "Thresholds maximise sensitivity + specificity on the validation split and were fixed before this split was "
            "looked at. A dash is for a finding without both classes on validation, or without the share's cases here.",
            "note",
        ),
    ]


def subgroup_blocks(metrics: Mapping[str, Any]) -> List[Block]:
    groups: Mapping[str, Mapping[str, Any]] = metrics.get("subgroups", {})
    if not groups:
        return [Text("The data name no sex, age or view.", "note")]
    points = []
    rows = []
    for kind, values in groups.items():
        for name, group in values.items():
            few = " (too few)" if group["too_few_images"] else ""
            bounds = group.get("mean_auroc_14_interval")
            low, high = (_number(v) for v in (bounds or (None, None)))
            points.append((f"{kind} {name} ({group['num_images']})", [(_number(group["mean_auroc_14"]), low, high)]))
            rows.append(
                [f"{kind} {name}", f"{group['num_images']}{few}", str(group["defined_findings"])]
                + [number(group["mean_auroc_14"]), interval(bounds)]
            )
    overall = _number(metrics["mean_auroc_14"])
    drawings: List[Block] = []
    if any(np.isfinite(series[0][0]) for _, series in points):
        drawing = forest(points, line=(overall, f"all {number(overall)}"), xlabel="AUROC, macro mean, 95 % interval")
        drawings.append(Drawing(drawing, "Macro mean AUROC by sex, age and view; in brackets the images"))
    head = ["group", "images", "findings", "AUROC, macro mean", "95 % interval"]
    return [
        Beside([*drawings, Table(head, rows)]),
        Text(
            "The mean of a group is over the findings that have both classes in it, so groups with different counts of "
            f"findings are not strictly comparable. Under {SMALLEST_SUBGROUP} images a number says nothing.",
            "note",
        ),
    ]


def radiologist_blocks(evaluation: Evaluation, labels: Optional[RadiologistLabels]) -> List[Block]:
    if labels is None:
        return [
            Text(
                "Not compared. With labels that radiologists gave, such as Google's for ChestX-ray14: "
                "ipu-trainer report RUN --radiologist-labels FILE.",
                "note",
            )
        ]
    predictions = evaluation.predictions
    metrics = evaluation.metrics["bootstrap"]
    found = compare(predictions, labels, metrics["replicates"], metrics["seed"])
    common = sum(file_name(name) in labels.values for name in predictions.file_names)
    told = f"{common} of the {len(predictions):,} evaluated images have labels of radiologists ({len(labels.values):,} in the file)."
    left_out = [column for column in labels.columns if not matching(column, predictions.findings)]
    if left_out:
        told += f" Left out, since no finding has the name: {', '.join(left_out)}."
    if not found:
        return [Text(told + " There is nothing to compare.", "warning")]
    blocks: List[Block] = [Text(told + (" So few images decide nothing." if common < 100 else ""))]
    mined = [
        [row.name, str(row.num_images), str(row.num_patients), str(row.radiologist_positive), str(row.mined_positive)]
        + [str(row.both_positive), number(row.sensitivity, 2), number(row.precision, 2), number(row.kappa, 2)]
        for row in found
    ]
    head = ["label", "images", "patients", "positive: radiologists", "mined", "both", "sensitivity", "precision", "kappa"]
    blocks += [Text("The mined labels, the radiologists' being the truth:"), Table(head, mined)]
    points = [
        (row.name, [_with_interval(row.against_radiologists, "auroc"), _with_interval(row.against_mined, "auroc")])
        for row in found
    ]
    if any(np.isfinite(value) for _, series in points for value, _, _ in series):
        drawing = forest(points, legend=("radiologists' labels", "mined labels"))
        blocks.append(Drawing(drawing, "The model's AUROC on the same images, by whose labels count"))
    rows = [
        [row.name]
        + [
            text
            for scores in (row.against_radiologists, row.against_mined)
            for text in (number(scores["auroc"]), interval(scores["auroc_interval"]))
        ]
        for row in found
    ]
    blocks.append(Table(["label", "AUROC, radiologists", "95 % interval", "AUROC, mined", "95 % interval"], rows))
    return blocks


# Several runs ------------------------------------------------------------------------------------------------------


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
            "Paired: both runs are scored on the same resampled patients, so what is hard about the images cancels out. "
            "The interval is about these images; another seed of training moves the numbers as well.",
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
    twins = [places[first.predictions.file_names[row]] for row in rows]
    truth = np.stack([first.column(name)[0][rows] for name in findings], axis=1)
    patients = [first.predictions.patient_ids[row] for row in rows]
    own = first.metrics["bootstrap"]
    means, replicates = [], []
    for evaluation, chosen in ((first, rows), (other, twins)):
        probability = np.stack([evaluation.column(name)[1][chosen] for name in findings], axis=1)
        means.append(mean_auroc(truth, probability, findings))
        drawn = patient_bootstrap(truth, probability, patients, own["replicates"], own["seed"])["auroc"]
        replicates.append(np.nanmean(drawn, axis=1))
    low, high = np.nanpercentile(replicates[1] - replicates[0], [2.5, 97.5])
    return len(rows), means[1] - means[0], (float(low), float(high))


def forest_blocks(evaluations: Sequence[Evaluation], names: Sequence[str]) -> List[Block]:
    findings = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.findings))
    series = [
        [_with_interval(evaluation.metrics["per_finding"].get(name, {}), "auroc") for evaluation in evaluations]
        for name in findings
    ]
    order = sorted(range(len(findings)), key=lambda i: -max([v for v, _, _ in series[i] if np.isfinite(v)], default=-1.0))
    points = [(findings[i], series[i]) for i in order[: 2 * _MOST_CARDS]]
    table = [[findings[i], *(f"{number(v)} ({interval((low, high))})" for v, low, high in series[i])] for i in order]
    return [
        Beside(
            [
                Drawing(forest(points, legend=names), "AUROC with patient-bootstrap 95 % intervals"),
                Table(["finding", *names], table),
            ]
        )
    ]


# Pictures ---------------------------------------------------------------------------------------------------------


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
        message = (
            f"{folder} holds other data (fingerprint {prepared.fingerprint}) than was evaluated ({evaluation.fingerprint})."
        )
        if data:
            raise ValueError(f"{message} Give the folder that was evaluated.")
        return Looking(reason=f"{message} Give it with --data.")
    subject: ChestXrayDataset = prepared.split(evaluation.split)
    return Looking.of_run(evaluation.run.folder, prepared, subject)


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


def _auroc_row(name: str, row: Mapping[str, Any]) -> List[str]:
    prevalence = row.get("prevalence")
    return [
        name,
        number(row.get("auroc")),
        interval(row.get("auroc_interval")),
        number(row.get("auprc")),
        interval(row.get("auprc_interval")),
        "–" if prevalence is None else f"{100 * prevalence:.1f} %",
        str(row.get("num_positive", "–")),
    ]


def _why(evaluation: Evaluation, name: str) -> str:
    y, score = evaluation.column(name)
    bad = int((~np.isfinite(score)).sum())
    if bad:
        return f"{bad} of {len(score)} probabilities are no numbers"
    if not len(y):
        return "no images"
    return "no image has it" if not y.any() else "every image has it" if y.all() else "not in metrics.json"


def _with_interval(row: Mapping[str, Any], name: str) -> Tuple[float, float, float]:
    low, high = row.get(f"{name}_interval") or (None, None)
    return _number(row.get(name)), _number(low), _number(high)


def _number(value: Any) -> float:
    return _NAN if value is None else float(value)
