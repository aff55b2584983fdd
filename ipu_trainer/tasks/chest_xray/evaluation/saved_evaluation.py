"""An evaluation in its folder: predictions.csv, and the whole read back, of a run or of `ipu-trainer evaluate`."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape
from ipu_trainer.tasks.chest_xray.data.labels import pathologies
from ipu_trainer.tasks.chest_xray.evaluation.metrics import known_only
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE, Run, load_run, read_results

PREDICTIONS_FILE = "predictions.csv"
_AGAIN = "Evaluate the run again."
_TRAIN_AGAIN = "Train the run again into another folder, or take the file from a copy."
_OF_EVALUATION = {"run": str, "data": str, "split": str, "data_fingerprint": str}
_NUMBER = (float, None)
_INTERVAL = ([_NUMBER], None)
_ROW = {
    "auroc?": _NUMBER, "auroc_interval?": _INTERVAL, "auprc?": _NUMBER, "auprc_interval?": _INTERVAL, "prevalence?": _NUMBER,
    "num_positive?": int, "num_known?": int, "brier?": _NUMBER, "ece?": _NUMBER, "threshold?": _NUMBER,
    "sensitivity?": _NUMBER, "specificity?": _NUMBER,
}  # fmt: skip
_GROUP = {
    "num_images": int, "mean_auroc_14": _NUMBER, "mean_auroc_14_interval?": _INTERVAL, "defined_findings?": int,
    "too_few_images?": bool, "per_finding?": {str: _NUMBER},
}  # fmt: skip
_METRICS = {
    "num_images": int, "num_patients?": (int, None), "mean_auroc_14": _NUMBER, "mean_auroc_14_interval": [_NUMBER],
    "mean_auprc_14": _NUMBER, "undefined_findings?": [str], "per_finding": {str: _ROW}, "no_finding?": _ROW,
    "subgroups?": {str: {str: _GROUP}}, "bootstrap?": {"replicates?": int, "unit?": str}, "digests?": {str: str},
    "split?": str, "run?": str, "data?": str, "data_fingerprint?": str, "label_source?": (str, None),
    "findings_unknown_to_the_model?": [str], "findings_unknown_to_the_data?": [str], "findings_renamed?": {str: str},
}  # fmt: skip
_RECORD = {
    "findings": [str], "thresholds": {str: _NUMBER}, "evaluated_split": str, "model": str, "seed": int, "split_method": str,
    "data": {"folder": str, "fingerprint": str, "size": int}, "settings": {"training": {}, "recipe": {}},
}  # fmt: skip


def check_record(record: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UserError for a run.json without what every chest X-ray run has, or with values of other types."""
    file = Path(run_dir) / RUN_FILE
    check_shape(record, _RECORD, file, _TRAIN_AGAIN)
    findings = record["findings"]
    lost = [name for name in findings if name not in record["thresholds"]]
    if not findings or lost or len(set(findings)) < len(findings) or record["seed"] < 0:
        reason = f"thresholds has no {lost[0]!r}" if lost else "findings must be different names, and seed not negative"
        raise UserError(f"{file}: {reason}. {_TRAIN_AGAIN}")


def check_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """The same of metrics.json."""
    check_shape(metrics, _METRICS, path, _AGAIN)
    rows = {"metrics": metrics, **metrics["per_finding"], "no_finding": metrics.get("no_finding", {})}
    for name, row in rows.items():
        for key in ("auroc_interval", "auprc_interval", "mean_auroc_14_interval"):
            if row.get(key) is not None and len(row[key]) != 2:
                raise UserError(f"{path}: {key} of {name} has {len(row[key])} ends, not 2. {_AGAIN}")


def predictions_digest(text: bytes) -> str:
    """SHA-256 of predictions.csv, which metrics.json has: it is known that they are of one evaluation."""
    return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True)
class Predictions:
    """truth and probability: float64 (num_images, num_findings); truth is NaN where unknown, a probability may be NaN."""

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
    """Text of predictions.csv. truth and probability: (num_images, num_findings). An unknown label is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_header(findings))
    for position in range(len(truth)):
        cells: List[Any] = [table["file_name"][position], table["patient_id"][position]]
        cells += ["" if np.isnan(value) else int(value) for value in truth[position]]
        cells += [f"{value:.6f}" for value in probability[position]]
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
            truth[number - 2] = [float(cell or "nan") for cell in cells[2 : 2 + len(findings)]]
            probability[number - 2] = [float(cell) for cell in cells[2 + len(findings) :]]
            if not (_are_between(truth[number - 2]) and _are_between(probability[number - 2])):
                raise UserError("a label or a probability is not between 0 and 1")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Evaluate the run again.") from error
    names, patients = tuple(line[0] for line in lines[1:]), tuple(line[1] for line in lines[1:])
    return Predictions(names, patients, tuple(findings), truth, probability)


def _are_between(values: np.ndarray) -> bool:
    """Whether all of them are NaN, or at least 0 and at most 1."""
    return bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all())


def _header(findings: Sequence[str]) -> List[str]:
    return ["file_name", "patient_id", *(f"truth_{n}" for n in findings), *(f"probability_{n}" for n in findings)]


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
        """(truth, probability) of one finding: (num_images,) each, truth NaN where it is unknown."""
        position = self.predictions.findings.index(name)
        return self.predictions.truth[:, position], self.predictions.probability[:, position]

    def known(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """column(name) without the images whose label is unknown."""
        return known_only(*self.column(name))


def load_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a run's folder, or in one that `evaluate` wrote. Raises UserError for any other folder."""
    folder = Path(folder)
    if (folder / RUN_FILE).is_file():
        run = load_run(folder)
        check_record(run.record, folder)
        metrics, split = run.metrics, str(run.record["evaluated_split"])
        data, fingerprint = run.record["data"]["folder"], run.record["data"]["fingerprint"]
    else:
        metrics = read_results(folder / METRICS_FILE)
        if "run" not in metrics or "data" not in metrics:
            raise UserError(f"{folder / METRICS_FILE} names no run and data. Evaluate the run again.")
        check_shape(metrics, _OF_EVALUATION, folder / METRICS_FILE, _AGAIN)
        run = load_run(Path(metrics["run"]))
        check_record(run.record, run.folder)
        split, data, fingerprint = str(metrics["split"]), metrics["data"], metrics["data_fingerprint"]
    check_metrics(metrics, folder / METRICS_FILE)
    predictions = read_predictions(folder / PREDICTIONS_FILE)
    _check_agreement(predictions, metrics, folder)
    thresholds = {name: number_or_nan(value) for name, value in run.record.get("thresholds", {}).items()}
    undefined = np.isnan(predictions.probability).any(axis=0)
    for name, is_nan in zip(predictions.findings, undefined.tolist()):
        if is_nan and metrics.get("per_finding", {}).get(name, {}).get("auroc") is not None:
            raise UserError(
                f"{folder / 'predictions.csv'}: a probability of {name} is NaN, and {METRICS_FILE} has its AUROC: one of them is "
                "damaged. Evaluate the run again."
            )
    return Evaluation(run, folder, metrics, predictions, split, Path(data), str(fingerprint), thresholds)


def _check_agreement(predictions: Predictions, metrics: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError where predictions.csv is not what the metrics were computed of: a report would show both."""
    path, wanted = folder / PREDICTIONS_FILE, metrics.get("digests", {}).get(PREDICTIONS_FILE)
    if wanted is not None and predictions_digest(path.read_bytes()) != wanted:
        raise UserError(f"{path} is not the file of {METRICS_FILE} beside it: its digest is another one. {_AGAIN}")
    if len(predictions) != metrics["num_images"]:
        raise UserError(
            f"{path} has {len(predictions):,} images, and {METRICS_FILE} beside it {metrics['num_images']:,}. {_AGAIN}"
        )
    for position, name in enumerate(predictions.findings):
        row = metrics["per_finding"].get(name, {})
        if row.get("auroc") is not None and not np.isfinite(predictions.probability[:, position]).all():
            raise UserError(f"{path}: probability_{name} holds a value that is no finite number. {_AGAIN}")


def number_or_nan(value: Any) -> float:
    """A number of a JSON file, which has null for NaN."""
    return float("nan") if value is None else float(value)
