"""Sections of report.html on the metrics: AUROC, curves, calibration, thresholds, subgroups, radiologists' labels."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence

import numpy as np

from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.data.text_files import base_name
from ipu_trainer.tasks.chest_xray.evaluation.metrics import SMALLEST_SUBGROUP, brier_score
from ipu_trainer.tasks.chest_xray.evaluation.radiologist_labels import (
    RadiologistLabels,
    Scores,
    agreement,
    matching,
    scores,
)
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Evaluation, number_or_nan
from ipu_trainer.tasks.chest_xray.report.artifacts import (
    auroc_forest,
    auroc_point,
    calibration,
    finding_card,
    resampled,
)
from ipu_trainer.tasks.reporting.drawing import forest, to_svg
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Cards,
    Drawing,
    SideBySide,
    Table,
    Text,
    interval,
    number,
)

# Findings with a drawing of their own; the tables list all of them.
MOST_CARDS = 30
_NAN = float("nan")


def auroc_blocks(evaluation: Evaluation) -> List[Block]:
    metrics = evaluation.metrics
    per_finding: Mapping[str, Any] = metrics["per_finding"]
    ordered = sorted(evaluation.defined, key=lambda name: -per_finding[name]["auroc"])
    drawings: List[Block] = []
    if ordered:
        caption = (
            f"AUROC with 95 % intervals that resample {resampled(metrics)}; in brackets the positive images. Gray line: "
            "chance."
        )
        drawings.append(Drawing(to_svg(auroc_forest(metrics, ordered[: 2 * MOST_CARDS])), caption))
    others = [name for name in evaluation.findings if name not in ordered]
    blocks: List[Block] = []
    if others:
        blocks.append(
            Text("No AUROC: " + "; ".join(f"{name} ({_why(evaluation, name)})" for name in others) + ".", "warning")
        )
    blocks += _other_data_blocks(metrics)
    table = [_auroc_row(name, per_finding.get(name, {})) for name in [*ordered, *others]]
    mean, auprc = number(metrics["mean_auroc_14"]), number(metrics["mean_auprc_14"])
    table.append(["macro mean", mean, interval(metrics["mean_auroc_14_interval"]), auprc, "", "", ""])
    if "no_finding" in metrics:
        table.append(_auroc_row(f"{NO_FINDING} (apart)", metrics["no_finding"]))
    head = ["finding", "AUROC", "95 % interval", "AUPRC", "95 % interval", "prevalence", "positives"]
    if any("num_known" in row for row in per_finding.values()):
        head.append("known labels")
        table = [[*cells, *[""] * (len(head) - len(cells))] for cells in table]
    blocks.append(SideBySide([*drawings, Table(head, table, [len(ordered) + len(others)])]))
    blocks.append(
        Text(
            f"The macro mean is over the findings above that have an AUROC. Intervals resample {resampled(metrics)} "
            f"({metrics['bootstrap']['replicates']} replicates), because images of one patient are not independent. Compare "
            "AUPRC with the prevalence, which a random ranking reaches.",
            "note",
        )
    )
    return blocks


def _other_data_blocks(metrics: Mapping[str, Any]) -> List[Block]:
    """What an evaluation on another data set left out, or took under another name."""
    sentences = []
    if metrics.get("findings_unknown_to_the_model"):
        sentences.append(
            f"Findings of the data without an output: {', '.join(metrics['findings_unknown_to_the_model'])}."
        )
    if metrics.get("findings_unknown_to_the_data"):
        sentences.append(f"Findings that the data do not label: {', '.join(metrics['findings_unknown_to_the_data'])}.")
    if metrics.get("findings_renamed"):
        pairs = [f"{name} (in the data: {other})" for name, other in metrics["findings_renamed"].items()]
        sentences.append(f"Matched by synonym or spelling: {', '.join(pairs)}.")
    return [Text(" ".join(sentences), "note")] if sentences else []


def card_blocks(evaluation: Evaluation) -> List[Block]:
    per_finding = evaluation.metrics["per_finding"]
    names = sorted(evaluation.defined, key=lambda name: -per_finding[name]["num_positive"])
    if not names:
        return [Text("No finding has both classes and finite probabilities, so there is no curve to draw.", "warning")]
    cards = []
    for name in names[:MOST_CARDS]:
        row = per_finding[name]
        caption = f"{name}: AUROC {number(row['auroc'])}, AUPRC {number(row['auprc'])}, {row['num_positive']} positives"
        figure = finding_card(*evaluation.known(name), evaluation.thresholds.get(name, _NAN))
        cards.append(Drawing(to_svg(figure), caption, "card"))
    blocks: List[Block] = [Cards(cards)]
    if len(names) > MOST_CARDS:
        blocks.append(Text(f"The figures show the {MOST_CARDS} most frequent of {len(names)} findings.", "note"))
    note = "Red dot: the threshold chosen on the validation split. Gray line: chance, or perfect reliability."
    return [*blocks, Text(note, "note")]


def calibration_blocks(evaluation: Evaluation) -> List[Block]:
    pairs = {name: evaluation.known(name) for name in evaluation.findings}
    names = [name for name, (y, score) in pairs.items() if len(y) and np.isfinite(score).all()]
    if not names:
        return [Text("No finding has finite probabilities, so there is no calibration to measure.", "warning")]
    columns = [pairs[name] for name in names]
    y, score = np.concatenate([y for y, _ in columns]), np.concatenate([s for _, s in columns])
    per_finding = evaluation.metrics["per_finding"]
    rows = []
    for name, (truth, probability) in zip(names, columns):
        brier, baseline = (brier_score(truth, p) for p in (probability, np.full(len(truth), truth.mean())))
        skill, ece = 1 - brier / baseline if baseline else _NAN, per_finding.get(name, {}).get("ece")
        means = (number(float(values.mean())) for values in (probability, truth))
        rows.append([name, number(brier, 4), number(skill, 2), number(ece, 4), *means])
    caption = f"Reliability of {len(names)} findings together, {len(y):,} predictions"
    drawing = Drawing(to_svg(calibration(y, score)), caption)
    return [
        SideBySide([drawing, Table(["finding", "Brier", "skill", "ECE", "mean probability", "observed rate"], rows)]),
        Text(
            "Brier: mean squared difference of probability and label; 0 is perfect. Skill: 1 - Brier / Brier of a constant "
            "prediction of the prevalence; below 0 the probabilities are worse than that constant. ECE: expected calibration "
            "error, the mean difference of probability and observed rate over 15 bins.",
            "note",
        ),
    ]


def threshold_blocks(evaluation: Evaluation) -> List[Block]:
    rows = []
    names = [*evaluation.findings, *(name for name in evaluation.predictions.findings if name == NO_FINDING)]
    for name in names:
        y, score = evaluation.known(name)
        threshold = evaluation.thresholds.get(name, _NAN)
        if not np.isfinite(threshold) or not np.isfinite(score).all():
            rows.append([name, number(threshold), *["–"] * 8])
            continue
        predicted = score >= threshold
        true_p, false_p = int((predicted & (y == 1)).sum()), int((predicted & (y == 0)).sum())
        false_n, true_n = int((~predicted & (y == 1)).sum()), int((~predicted & (y == 0)).sum())
        shares = [(true_p, false_n), (true_n, false_p), (true_p, false_p), (true_n, false_n)]
        rows.append(
            [name, number(threshold)]
            + [number(a / (a + b) if a + b else _NAN) for a, b in shares]
            + [str(count) for count in (true_p, false_p, false_n, true_n)]
        )
    head = ["finding", "threshold", "sensitivity", "specificity", "PPV", "NPV", "TP", "FP", "FN", "TN"]
    where = {
        "": "and were fixed before this evaluation.",
        "thresholds": "which is this split, so sensitivity and specificity are optimistic here.",
        "training": "and some of these images were in that split or in training.",
    }[evaluation.seen_in_training]
    return [
        Table(head, rows),
        Text(
            f"Thresholds maximise sensitivity + specificity on the run's validation split, {where} A dash marks a "
            "finding without both classes on validation, or a ratio without cases here.",
            "note",
        ),
    ]


def subgroup_blocks(metrics: Mapping[str, Any]) -> List[Block]:
    groups: Mapping[str, Mapping[str, Any]] = metrics.get("subgroups", {})
    if not groups:
        return [Text("The data have no sex, age or view.", "note")]
    points = []
    rows = []
    for kind, values in groups.items():
        for name, group in values.items():
            few = " (too few)" if group["too_few_images"] else ""
            mean, bounds = group["mean_auroc_14"], group.get("mean_auroc_14_interval")
            point = auroc_point({"auroc": mean, "auroc_interval": bounds})
            points.append((f"{kind} {name} ({group['num_images']})", [point]))
            counts = (f"{group['num_images']}{few}", str(group["defined_findings"]))
            rows.append([f"{kind} {name}", *counts, number(mean), interval(bounds)])
    overall = number_or_nan(metrics["mean_auroc_14"])
    drawings: List[Block] = []
    if any(np.isfinite(series[0][0]) for _, series in points):
        figure = forest(points, line=(overall, f"all {number(overall)}"), xlabel="AUROC, macro mean, 95 % interval")
        drawings.append(Drawing(to_svg(figure), "Macro mean AUROC by sex, age and view; in brackets the images"))
    head = ["group", "images", "findings", "AUROC, macro mean", "95 % interval"]
    return [
        SideBySide([*drawings, Table(head, rows)]),
        Text(
            "The mean of a group is over the findings with both classes in that group, so groups with different numbers of "
            f"findings are not strictly comparable. Fewer than {SMALLEST_SUBGROUP} images are too few for a conclusion.",
            "note",
        ),
    ]


def radiologist_blocks(
    evaluation: Evaluation, labels: Optional[RadiologistLabels], all_images: Optional[ChestXrayDataset] = None
) -> List[Block]:
    """all_images: the prepared images of every split, whose mined labels are compared; default: the evaluated images."""
    if labels is None:
        return [
            Text(
                "This report has no labels by radiologists. To compare with some, such as Google's for ChestX-ray14: "
                "ipu-trainer report RUN --radiologist-labels FILE.",
                "note",
            )
        ]
    predictions = evaluation.predictions
    names: Sequence[str] = predictions.file_names
    truth, findings = predictions.truth, list(predictions.findings)
    if all_images is not None:
        names, truth, findings = all_images.table["file_name"], all_images.labels, all_images.findings
    num_evaluated = sum(base_name(name) in labels.values for name in predictions.file_names)
    num_prepared = sum(base_name(name) in labels.values for name in names)
    summary = f"{num_evaluated} of the {len(predictions):,} evaluated images have labels by radiologists"
    summary += f", {num_prepared} of all {len(names):,} prepared ones" if all_images is not None else ""
    summary += f"; the file has labels of {len(labels.values):,} images."
    left_out = [column for column in labels.columns if not matching(column, findings)]
    if left_out:
        summary += f" Left out, because no finding has this name: {', '.join(left_out)}."
    mined = agreement(names, truth, findings, labels)
    if not mined:
        return [Text(summary + " There is nothing to compare.", "warning")]
    blocks: List[Block] = [Text(summary + (" This is too few images for a conclusion." if num_evaluated < 100 else ""))]
    where = "all prepared images" if all_images is not None else "the evaluated images"
    rows = []
    for row in mined:
        counts = (row.num_images, row.radiologist_positive, row.mined_positive, row.both_positive)
        shares = (row.sensitivity, row.precision, row.kappa)
        rows.append([row.name, *map(str, counts), *(number(share, 2) for share in shares)])
    head = ["label", "images", "radiologists +", "mined +", "both +", "sensitivity", "precision", "kappa"]
    blocks.append(Text(f"The mined labels of {where}, with the radiologists' labels as ground truth:"))
    blocks.append(Table(head, rows))
    bootstrap = evaluation.metrics["bootstrap"]
    found = scores(predictions, labels, bootstrap["replicates"], bootstrap["seed"])
    return blocks + _score_blocks(found)


def _score_blocks(found: Sequence[Scores]) -> List[Block]:
    if not found:
        return [Text("No evaluated image has such labels, so the model cannot be compared with them.", "warning")]
    points = [(row.name, [auroc_point(row.against_radiologists), auroc_point(row.against_mined)]) for row in found]
    blocks: List[Block] = [Text("The model on the evaluated images, scored against either set of labels:")]
    if any(np.isfinite(value) for _, series in points for value, _, _ in series):
        figure = forest(points, legend=("radiologists' labels", "mined labels"))
        blocks.append(Drawing(to_svg(figure), "The model's AUROC on the same images"))
    head = ["label", "images", "patients"]
    for whose in ("radiologists +", "mined +"):
        head += [whose, "AUROC", "95 % interval"]
    rows = []
    for row in found:
        cells = [row.name, str(row.num_images), str(row.num_patients)]
        for scored in (row.against_radiologists, row.against_mined):
            cells += [str(scored["num_positive"]), number(scored["auroc"]), interval(scored["auroc_interval"])]
        rows.append(cells)
    blocks.append(Table(head, rows))
    undefined = [row.name for row in found if number(row.against_radiologists["auroc"]) == "–"]
    if undefined:
        blocks.append(
            Text(f"No AUROC: the radiologists' labels have one class only for {', '.join(undefined)}.", "note")
        )
    return blocks


def _auroc_row(name: str, row: Mapping[str, Any]) -> List[str]:
    """The cells of a finding; those of labels that are partly unknown end in the number of known ones."""
    prevalence = row.get("prevalence")
    known = [f"{row['num_known']:,}"] if "num_known" in row else []
    return [
        name,
        number(row.get("auroc")),
        interval(row.get("auroc_interval")),
        number(row.get("auprc")),
        interval(row.get("auprc_interval")),
        "–" if prevalence is None else f"{100 * prevalence:.1f} %",
        str(row.get("num_positive", "–")),
        *known,
    ]


def _why(evaluation: Evaluation, name: str) -> str:
    if not len(evaluation.predictions):
        return "no images"
    y, score = evaluation.known(name)
    bad = int((~np.isfinite(score)).sum())
    if bad:
        return f"{bad} of {len(score)} probabilities are NaN or infinite"
    if not len(y):
        return "no known label"
    return "no image has it" if not y.any() else "every image has it" if y.all() else "not in metrics.json"
