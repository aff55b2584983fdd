"""predictions.csv read back, and the images that are worth a look because of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING


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


@dataclass(frozen=True)
class ChosenImage:
    """One image and finding. rank: the share of the other images that the finding's probability is above."""

    row: int
    column: int
    rank: float


def read_predictions(path: Path) -> Predictions:
    """Raises ValueError with the line for a file that `train` or `evaluate` did not write."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). `train` and `evaluate` write it.") from error
    head = lines[0] if lines else []
    findings = [name[len("truth_") :] for name in head if name.startswith("truth_")]
    wanted = ["file_name", "patient_id", *(f"truth_{n}" for n in findings), *(f"probability_{n}" for n in findings)]
    if head != wanted or not findings:
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


KINDS = ("found", "missed", "false alarm")


def choose_images(predictions: Predictions, each: int = 6, each_finding: int = 2) -> Dict[str, List[ChosenImage]]:
    """For each of KINDS at most `each` images, no image twice, at most `each_finding` of one finding.

    Probabilities of rare findings are small, so what counts is where an image ranks among all others for the same finding:
    "found" are the positives that rank highest, "missed" those that rank lowest, "false alarm" the negatives that rank highest.
    """
    positive: List[ChosenImage] = []
    negative: List[ChosenImage] = []
    for column, name in enumerate(predictions.findings):
        score, y = predictions.probability[:, column], predictions.truth[:, column]
        if name == NO_FINDING or len(score) < 2 or not np.isfinite(score).all() or not 0 < y.sum() < len(y):
            continue
        ordered = np.sort(score)
        rank = np.searchsorted(ordered, score, side="left") / (len(score) - 1)
        by_rank = np.argsort(rank, kind="stable")
        ups, downs = [i for i in by_rank if y[i] == 1], [i for i in by_rank if y[i] == 0]
        # Only the ends can be chosen.
        positive += [ChosenImage(int(i), column, float(rank[i])) for i in {*ups[:each], *ups[-each:]}]
        negative += [ChosenImage(int(i), column, float(rank[i])) for i in downs[-each:]]
    taken: Set[int] = set()

    def surest(chosen: ChosenImage) -> Tuple[float, float, int, int]:
        probability = float(predictions.probability[chosen.row, chosen.column])
        return -chosen.rank, -probability, chosen.column, chosen.row

    orders = {
        "found": sorted((c for c in positive if c.rank >= 0.5), key=surest),
        "missed": sorted((c for c in positive if c.rank < 0.5), key=surest, reverse=True),
        "false alarm": sorted((c for c in negative if c.rank >= 0.5), key=surest),
    }
    return {kind: _take(orders[kind], each, each_finding, taken) for kind in KINDS}


def _take(candidates: Sequence[ChosenImage], each: int, each_finding: int, taken: Set[int]) -> List[ChosenImage]:
    chosen: List[ChosenImage] = []
    for candidate in candidates:
        same = sum(other.column == candidate.column for other in chosen)
        if candidate.row not in taken and same < each_finding and len(chosen) < each:
            chosen.append(candidate)
            taken.add(candidate.row)
    return chosen
