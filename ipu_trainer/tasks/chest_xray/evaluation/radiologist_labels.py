"""The mined labels and the model compared with labels by radiologists (Majkowska et al., Radiology 2020).

Google published such labels for some images of ChestX-ray14. A column is compared with the finding of its name, and "Nodule or
mass" with Nodule and Mass together. Columns without a finding (Fracture, Airspace opacity) are left out and listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.text_files import base_name, read_table
from ipu_trainer.tasks.chest_xray.evaluation.metrics import evaluate_predictions
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Predictions

_IMAGE_COLUMNS = ("Image Index", "Image ID")
_VALUES = {"YES": 1.0, "NO": 0.0, "1": 1.0, "0": 0.0}
_UNIONS = {"nodule or mass": ("Nodule", "Mass")}


@dataclass(frozen=True)
class RadiologistLabels:
    """values: image file name -> 0 or 1 for each of columns; NaN for an empty cell."""

    columns: Tuple[str, ...]
    values: Dict[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """Mined labels of one finding on the images that have both, with the radiologists as ground truth."""

    name: str
    num_images: int
    radiologist_positive: int
    mined_positive: int
    both_positive: int
    kappa: float

    @property
    def sensitivity(self) -> float:
        return self.both_positive / self.radiologist_positive if self.radiologist_positive else float("nan")

    @property
    def precision(self) -> float:
        return self.both_positive / self.mined_positive if self.mined_positive else float("nan")


@dataclass(frozen=True)
class Scores:
    """The model on one finding, scored against either set of labels of the same images; rows as metrics.json's per_finding."""

    name: str
    num_images: int
    num_patients: int
    against_radiologists: Mapping[str, Any]
    against_mined: Mapping[str, Any]


def read_radiologist_labels(path: Path) -> RadiologistLabels:
    """Every column of YES and NO (or 1 and 0). Raises UserError where there is none, or no column of images."""
    lines = read_table(path)
    head = [cell.strip() for cell in lines[0]] if lines else []
    image = next((head.index(name) for name in _IMAGE_COLUMNS if name in head), None)
    rows = [line for line in lines[1:] if len(line) == len(head)]
    if image is None or len(rows) < len([line for line in lines[1:] if any(line)]):
        raise UserError(
            f"{path} has the columns {', '.join(head)[:200]} and {len(lines) - 1 - len(rows)} lines with another number of "
            f"cells. It needs {' or '.join(_IMAGE_COLUMNS)} and columns of YES and NO, as Google's labels have."
        )
    chosen = [
        column
        for column in range(len(head))
        if {row[column].strip().upper() for row in rows} - {""} and head[column] not in ("Follow-up #", "Patient ID")
        if {row[column].strip().upper() for row in rows} - {""} <= set(_VALUES)
    ]
    if not chosen:
        raise UserError(f"{path} has no column of YES and NO. Give Google's labels for ChestX-ray14.")
    values = {
        base_name(row[image]): np.array([_VALUES.get(row[column].strip().upper(), np.nan) for column in chosen])
        for row in rows
    }
    return RadiologistLabels(tuple(head[column] for column in chosen), values)


def matching(column: str, findings: Sequence[str]) -> Tuple[str, ...]:
    """The findings that a column of radiologists' labels is about; empty if no finding has its name."""
    plain = {name.lower().replace("_", " "): name for name in findings}
    key = column.lower().replace("_", " ")
    if key in plain:
        return (plain[key],)
    union = _UNIONS.get(key, ())
    return union if union and all(name in findings for name in union) else ()


def agreement(
    file_names: Sequence[str], truth: np.ndarray, findings: Sequence[str], labels: RadiologistLabels
) -> List[Agreement]:
    """truth: mined labels (num_images, num_findings). One row for each column that matches findings and has images."""
    results = []
    for name, _, rows, expert, mined in _matched(file_names, truth, findings, labels):
        counts = (len(rows), int(expert.sum()), int(mined.sum()), int((expert * mined).sum()))
        results.append(Agreement(name, *counts, kappa=_kappa(expert, mined)))
    return results


def scores(
    predictions: Predictions, labels: RadiologistLabels, num_bootstrap: int = 1000, seed: int = 0
) -> List[Scores]:
    """One row for each column that matches findings; empty where no evaluated image has a label."""
    results = []
    matched = _matched(predictions.file_names, predictions.truth, predictions.findings, labels)
    for name, columns, rows, expert, mined in matched:
        # The usual score of a union of findings is the larger probability.
        score = predictions.probability[rows][:, columns].max(axis=1)
        table = {"patient_id": [predictions.patient_ids[row] for row in rows]}
        expert_row, mined_row = (
            evaluate_predictions(truth[:, None], score[:, None], [name], table, None, num_bootstrap, seed)
            for truth in (expert, mined)
        )
        patients = len(set(table["patient_id"]))
        found = (expert_row["per_finding"][name], mined_row["per_finding"][name])
        results.append(Scores(name, len(rows), patients, *found))
    return results


def _matched(
    file_names: Sequence[str], truth: np.ndarray, findings: Sequence[str], labels: RadiologistLabels
) -> Iterator[Tuple[str, List[int], List[int], np.ndarray, np.ndarray]]:
    """(name, columns of findings, rows with both labels, the radiologists' labels of these rows, their mined labels)."""
    labelled = [labels.values.get(base_name(name)) for name in file_names]
    for position, column in enumerate(labels.columns):
        names = matching(column, findings)
        columns = [list(findings).index(name) for name in names]
        mined = _any_of(truth[:, columns]) if columns else np.full(len(truth), np.nan)
        pairs = [(row, values[position]) for row, values in enumerate(labelled) if values is not None]
        known = [(row, value) for row, value in pairs if np.isfinite(value) and np.isfinite(mined[row])]
        if known:
            rows = [row for row, _ in known]
            yield " or ".join(names), columns, rows, np.array([value for _, value in known]), mined[rows]


def _any_of(truth: np.ndarray) -> np.ndarray:
    """Whether an image has any of some findings: (num_images,) of 0, 1, and NaN where that is unknown."""
    return np.where((truth == 1).any(axis=1), 1.0, truth.max(axis=1))


def _kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa; NaN where both have one and the same class only."""
    agree = float((one == other).mean())
    chance = float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean()))
    return (agree - chance) / (1 - chance) if chance < 1 else float("nan")
