"""Which predictions a report shows as examples: positives found and missed, and false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.evaluation.predictions import Predictions

KINDS = ("found", "missed", "false alarm")


@dataclass(frozen=True)
class ExampleImage:
    """One image and finding. rank: the fraction of the other images with a lower probability of the finding."""

    row: int
    column: int
    rank: float


def choose_images(predictions: Predictions, each: int = 6, each_finding: int = 2) -> Dict[str, List[ExampleImage]]:
    """At most `each` images of each of KINDS, no image twice, at most `each_finding` of one finding.

    Images are compared by their rank for the same finding, because probabilities of rare findings are small: "found" are the
    positives of highest rank, "missed" those of lowest rank, "false alarm" the negatives of highest rank.
    """
    positive: List[ExampleImage] = []
    negative: List[ExampleImage] = []
    for column, name in enumerate(predictions.findings):
        score, y = predictions.probability[:, column], predictions.truth[:, column]
        if name == NO_FINDING or len(score) < 2 or not np.isfinite(score).all() or not 0 < y.sum() < len(y):
            continue
        ordered = np.sort(score)
        rank = np.searchsorted(ordered, score, side="left") / (len(score) - 1)
        by_rank = np.argsort(rank, kind="stable")
        ups, downs = [i for i in by_rank if y[i] == 1], [i for i in by_rank if y[i] == 0]
        # Only the ends can be chosen.
        positive += [ExampleImage(int(i), column, float(rank[i])) for i in {*ups[:each], *ups[-each:]}]
        negative += [ExampleImage(int(i), column, float(rank[i])) for i in downs[-each:]]
    taken: Set[int] = set()

    def surest(chosen: ExampleImage) -> Tuple[float, float, int, int]:
        probability = float(predictions.probability[chosen.row, chosen.column])
        return -chosen.rank, -probability, chosen.column, chosen.row

    orders = {
        "found": sorted((c for c in positive if c.rank >= 0.5), key=surest),
        "missed": sorted((c for c in positive if c.rank < 0.5), key=surest, reverse=True),
        "false alarm": sorted((c for c in negative if c.rank >= 0.5), key=surest),
    }
    return {kind: _take(orders[kind], each, each_finding, taken) for kind in KINDS}


def _take(candidates: Sequence[ExampleImage], each: int, each_finding: int, taken: Set[int]) -> List[ExampleImage]:
    chosen: List[ExampleImage] = []
    for candidate in candidates:
        same = sum(other.column == candidate.column for other in chosen)
        if candidate.row not in taken and same < each_finding and len(chosen) < each:
            chosen.append(candidate)
            taken.add(candidate.row)
    return chosen
