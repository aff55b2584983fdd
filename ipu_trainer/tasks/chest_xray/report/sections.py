"""What the task's page says of one evaluation, section by section."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.evaluation.calibration import brier_score
from ipu_trainer.tasks.chest_xray.evaluation.evaluated_split import Evaluation
from ipu_trainer.tasks.chest_xray.evaluation.metrics import SMALLEST_SUBGROUP
from ipu_trainer.tasks.chest_xray.evaluation.radiologists import (
    RadiologistLabels,
    Scores,
    agreement,
    matching,
    scores,
)
from ipu_trainer.tasks.chest_xray.explain.boxes import file_name
from ipu_trainer.tasks.chest_xray.report.figures import calibration, finding_card
from ipu_trainer.tasks.reporting.drawing import forest
from ipu_trainer.tasks.reporting.html_document import Beside, Block, Cards, Drawing, Table, Text, interval, number

# Drawings of more findings than this would make a page that nobody scrolls through; the tables have them all.
MOST_CARDS = 30
_NAN = float("nan")


def auroc_blocks(evaluation: Evaluation) -> List[Block]:
    metrics = evaluation.metrics
    per_finding: Mapping[str, Any] = metrics["per_finding"]
    ordered = sorted(evaluation.defined, key=lambda name: -per_finding[name]["auroc"])
    drawings: List[Block] = []
    if ordered:
        rows = [
            (f"{name} ({per_finding[name]['num_positive']})", [auroc_point(per_finding[name])])
            for name in ordered[: 2 * MOST_CARDS]
        ]
        mean = _number(metrics["mean_auroc_14"])
        caption = "AUROC with its patient-bootstrap 95 % interval; in brackets the positive images. Grey: guessing."
        drawings.append(Drawing(forest(rows, line=(mean, f"macro mean {number(mean)}")), caption))
    others = [name for name in evaluation.findings if name not in ordered]
    blocks: List[Block] = []
    if others:
        blocks.append(
            Text("No AUROC: " + "; ".join(f"{name} ({_why(evaluation, name)})" for name in others) + ".", "warning")
        )
    table = []
    for name in [*ordered, *others]:
        table.append(_auroc_row(name, per_finding.get(name, {})))
    table.append(
        [
            "macro mean",
            number(metrics["mean_auroc_14"]),
            interval(metrics["mean_auroc_14_interval"]),
            number(metrics["mean_auprc_14"]),
            "",
            "",
            "",
        ]
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
        return [
            Text("No finding has both classes and numbers for probabilities, so there is no curve to draw.", "warning")
        ]
    cards = []
    for name in names[:MOST_CARDS]:
        row = per_finding[name]
        caption = f"{name}: AUROC {number(row['auroc'])}, AUPRC {number(row['auprc'])}, {row['num_positive']} positives"
        cards.append(
            Drawing(finding_card(*evaluation.column(name), evaluation.thresholds.get(name, _NAN)), caption, "card")
        )
    blocks: List[Block] = [Cards(cards)]
    if len(names) > MOST_CARDS:
        blocks.append(Text(f"Drawn are the {MOST_CARDS} most frequent of {len(names)} findings.", "note"))
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
            [
                name,
                number(own, 4),
                number(skill, 2),
                number(per_finding.get(name, {}).get("ece"), 4),
                number(float(probability.mean())),
                number(float(truth.mean())),
            ]
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
    head = [
        "finding",
        "threshold",
        "sensitivity",
        "specificity",
        "PPV",
        "NPV",
        "true +",
        "false +",
        "false -",
        "true -",
    ]
    where = {
        "": "and were fixed before these images were looked at.",
        "thresholds": "which are these very images, so sensitivity and specificity are too good here.",
        "training": "and some of these images took part in that, or in training.",
    }[evaluation.seen_in_training]
    return [
        Table(head, rows),
        Text(
            f"Thresholds maximise sensitivity + specificity on the run's validation split, {where} A dash is for a finding "
            "without both classes on validation, or without the share's cases here.",
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
                [
                    f"{kind} {name}",
                    f"{group['num_images']}{few}",
                    str(group["defined_findings"]),
                    number(group["mean_auroc_14"]),
                    interval(bounds),
                ]
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


def radiologist_blocks(
    evaluation: Evaluation, labels: Optional[RadiologistLabels], everything: Optional[ChestXrayDataset] = None
) -> List[Block]:
    """everything: all prepared images, for the mined labels; without them those that were evaluated stand in."""
    if labels is None:
        return [
            Text(
                "Not compared. With labels that radiologists gave, such as Google's for ChestX-ray14: "
                "ipu-trainer report RUN --radiologist_labels FILE.",
                "note",
            )
        ]
    predictions = evaluation.predictions
    names: Sequence[str] = predictions.file_names
    truth, findings = predictions.truth, list(predictions.findings)
    if everything is not None:
        names, truth, findings = everything.table["file_name"], everything.labels, everything.findings
    common = sum(file_name(name) in labels.values for name in predictions.file_names)
    prepared = sum(file_name(name) in labels.values for name in names)
    told = f"{common} of the {len(predictions):,} evaluated images have labels of radiologists"
    told += f", {prepared} of all {len(names):,} prepared ones" if everything is not None else ""
    told += f"; the file has them of {len(labels.values):,} images."
    left_out = [column for column in labels.columns if not matching(column, findings)]
    if left_out:
        told += f" Left out, since no finding has the name: {', '.join(left_out)}."
    mined = agreement(names, truth, findings, labels)
    if not mined:
        return [Text(told + " There is nothing to compare.", "warning")]
    blocks: List[Block] = [Text(told + (" So few images decide nothing." if common < 100 else ""))]
    where = "all prepared images" if everything is not None else "the evaluated images"
    blocks += [
        Text(f"The mined labels of {where}, the radiologists' being the truth:"),
        Table(
            ["label", "images", "radiologists +", "mined +", "both +", "sensitivity", "precision", "kappa"],
            [
                [
                    row.name,
                    *(
                        str(n)
                        for n in (row.num_images, row.radiologist_positive, row.mined_positive, row.both_positive)
                    ),
                    *(number(value, 2) for value in (row.sensitivity, row.precision, row.kappa)),
                ]
                for row in mined
            ],
        ),
    ]
    bootstrap = evaluation.metrics["bootstrap"]
    found = scores(predictions, labels, bootstrap["replicates"], bootstrap["seed"])
    return blocks + _score_blocks(found)


def _score_blocks(found: Sequence[Scores]) -> List[Block]:
    if not found:
        return [Text("None of them was evaluated, so the model cannot be held against them.", "warning")]
    points = [(row.name, [auroc_point(row.against_radiologists), auroc_point(row.against_mined)]) for row in found]
    blocks: List[Block] = [Text("The model on the evaluated ones, by whose labels count:")]
    if any(np.isfinite(value) for _, series in points for value, _, _ in series):
        drawing = forest(points, legend=("radiologists' labels", "mined labels"))
        blocks.append(Drawing(drawing, "The model's AUROC on the same images"))
    head = [
        "label",
        "images",
        "patients",
        "radiologists +",
        "AUROC",
        "95 % interval",
        "mined +",
        "AUROC",
        "95 % interval",
    ]
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


def auroc_point(row: Mapping[str, Any]) -> Tuple[float, float, float]:
    """(value, low, high) of a row of metrics.json; NaN where it has none."""
    low, high = row.get("auroc_interval") or (None, None)
    return _number(row.get("auroc")), _number(low), _number(high)


def _number(value: Any) -> float:
    return _NAN if value is None else float(value)
