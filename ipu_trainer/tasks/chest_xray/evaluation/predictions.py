"""predictions.csv: labels and probabilities of every evaluated image, written and read."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """truth and probability: float64 (num_images, num_findings); a probability may be NaN."""

    file_names: Tuple[str, ...]
    patient_ids: Tuple[str, ...]
    findings: Tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.file_names)


def predictions_csv(
    truth: np.ndarray, probability: np.ndarray, findings: Sequence[str], table: Mapping[str, Sequence[Any]]
) -> str:
    """Text of predictions.csv. truth and probability: (num_images, num_findings)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_header(findings))
    for position in range(len(truth)):
        cells: List[Any] = [table["file_name"][position], table["patient_id"][position]]
        cells += [int(value) for value in truth[position]] + [f"{value:.6f}" for value in probability[position]]
        writer.writerow(cells)
    return out.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Raises UserError with the line for a file that `train` or `evaluate` did not write."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). `train` and `evaluate` write it.") from error
    head = lines[0] if lines else []
    findings = [name[len("truth_") :] for name in head if name.startswith("truth_")]
    if head != _header(findings) or not findings:
        raise UserError(
            f"{path} has the columns {', '.join(head)[:200]}, but predictions have file_name, patient_id, truth_X for each "
            "finding, then probability_X. Evaluate the run again."
        )
    truth = np.zeros((len(lines) - 1, len(findings)))
    probability = np.zeros_like(truth)
    for number, cells in enumerate(lines[1:], start=2):
        try:
            if len(cells) != len(head):
                raise UserError(f"{len(cells)} cells, the head has {len(head)}")
            truth[number - 2] = [float(cell) for cell in cells[2 : 2 + len(findings)]]
            probability[number - 2] = [float(cell) for cell in cells[2 + len(findings) :]]
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Evaluate the run again.") from error
    names, patients = tuple(line[0] for line in lines[1:]), tuple(line[1] for line in lines[1:])
    return Predictions(names, patients, tuple(findings), truth, probability)


def _header(findings: Sequence[str]) -> List[str]:
    return ["file_name", "patient_id", *(f"truth_{n}" for n in findings), *(f"probability_{n}" for n in findings)]
