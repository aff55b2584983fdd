"""An evaluation read back from its folder: that of a run, or one that `ipu-trainer evaluate` wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import pathologies
from ipu_trainer.tasks.chest_xray.evaluation.predictions import Predictions, read_predictions
from ipu_trainer.tasks.reporting.finished_run import Run, load_run, read_json
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE


@dataclass(frozen=True)
class Evaluation:
    """One evaluated split. data and fingerprint: the prepared data set that was evaluated."""

    run: Run
    folder: Path
    metrics: Mapping[str, Any]
    predictions: Predictions
    split: str
    data: Path
    fingerprint: str
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def seen_in_training(self) -> str:
        """ "training" or "thresholds" if evaluated images were used for training or for choosing thresholds, else ""."""
        if self.fingerprint != self.run.record["data"]["fingerprint"]:
            return ""
        return {"train": "training", "all": "training", "validation": "thresholds"}.get(self.split, "")

    @property
    def findings(self) -> List[str]:
        """The reported findings: all but "No Finding"."""
        return pathologies(self.predictions.findings)

    @property
    def defined(self) -> List[str]:
        """The findings with an AUROC: both classes and finite probabilities."""
        rows = self.metrics["per_finding"]
        return [name for name in self.findings if name in rows and rows[name].get("auroc") is not None]

    def column(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """(truth, probability) of one finding: (num_images,) each."""
        position = self.predictions.findings.index(name)
        return self.predictions.truth[:, position], self.predictions.probability[:, position]


def load_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a run's folder, or in one that `evaluate` wrote. Raises UserError for any other folder."""
    folder = Path(folder)
    if (folder / RUN_FILE).is_file():
        run = load_run(folder)
        metrics, split = run.metrics, str(run.record["evaluated_split"])
        data, fingerprint = run.record["data"]["folder"], run.record["data"]["fingerprint"]
    else:
        metrics = read_json(folder / METRICS_FILE)
        if "run" not in metrics or "data" not in metrics:
            raise UserError(f"{folder / METRICS_FILE} names no run and data. Evaluate the run again.")
        run = load_run(Path(metrics["run"]))
        split, data, fingerprint = str(metrics["split"]), metrics["data"], metrics["data_fingerprint"]
    predictions = read_predictions(folder / "predictions.csv")
    thresholds = {name: number_or_nan(value) for name, value in run.record.get("thresholds", {}).items()}
    return Evaluation(run, folder, metrics, predictions, split, Path(data), str(fingerprint), thresholds)


def number_or_nan(value: Any) -> float:
    """A number of a JSON file, which has null for NaN."""
    return float("nan") if value is None else float(value)
