"""A finished run on any prepared data set: thresholds from its validation, findings matched by name or synonym."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from ipu_trainer.atomic import remove_leftovers
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import PreparedChestXrays, load_prepared
from ipu_trainer.tasks.chest_xray.data.labels import label_source
from ipu_trainer.tasks.chest_xray.data.splits import SPLITS
from ipu_trainer.tasks.chest_xray.evaluation import metrics as metric
from ipu_trainer.tasks.chest_xray.evaluation.matched_findings import MatchedFindings
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import check_record, number_or_nan
from ipu_trainer.tasks.chest_xray.predict import load_predictor
from ipu_trainer.tasks.chest_xray.report import artifacts as report
from ipu_trainer.tasks.chest_xray.report.html_report import write_report
from ipu_trainer.tasks.reporting.run_report import report_or_reason
from ipu_trainer.tasks.run_record import read_run


def evaluate(
    run_dir: Path, data_dir: Path, split: str, output: Path, num_bootstrap: int = 1000, precision: Optional[str] = None
) -> Dict[str, Any]:
    """Evaluate a finished run on a split of any prepared data set, over the findings that both have (matched_findings.py).

    The result names the findings of one that the other lacks. The data say nothing about findings that they lack, so these are
    undefined. Raises UserError where no finding is common, or none of the split's images has a known label of one.
    """
    metric.check_replicates(num_bootstrap)
    record = read_run(run_dir)
    check_record(record, run_dir)
    data = load_prepared(data_dir)
    subject = data.split(split)
    if not len(subject):
        raise UserError(f"the {split} split of {data_dir} is empty. Evaluate another of {', '.join(SPLITS)}, all.")
    findings: List[str] = record["findings"]
    matched = MatchedFindings.of(findings, data.findings)
    truth = matched.truth(subject.labels)
    if np.isnan(truth).all():
        raise UserError(
            f"no image in the {split} split of {data_dir} has a known label of {', '.join(matched.of_data.values())}. "
            f"Evaluate another of {', '.join(SPLITS)}, all."
        )
    predictor = load_predictor(run_dir, record, data.decoding, precision)
    probability = predictor.of_pixels(subject.pixels(), len(findings))
    thresholds = {name: number_or_nan(value) for name, value in record["thresholds"].items()}
    result = {
        "split": split,
        "run": str(Path(run_dir).resolve()),
        "data": str(Path(data_dir).resolve()),
        "data_fingerprint": data.fingerprint,
        "label_source": label_source(data.manifest.get("labels", {}).get("format")),
        "findings_unknown_to_the_model": matched.unknown_to_the_model,
        "findings_unknown_to_the_data": matched.unknown_to_the_data,
        "findings_renamed": matched.renamed,
        "window_differs": _window_differs(record, data),
        **metric.evaluate_predictions(
            truth, probability, findings, subject.table, thresholds, num_bootstrap, record["seed"]
        ),
    }
    remove_leftovers(output)
    report.write_evaluation(output, result, truth, probability, findings, subject.table)
    report_or_reason(write_report, output)
    return result


def _window_differs(record: Dict[str, Any], data: PreparedChestXrays) -> str:
    """A sentence if the run's images became gray levels by another --window; empty if not, or if an earlier release trained it."""
    trained = record["data"].get("decoding", {}).get("window", data.decoding.window)
    if trained == data.decoding.window:
        return ""
    return (
        f"the run was trained on images prepared with --window {trained}, and {data.folder} with --window "
        f"{data.decoding.window}: images of more than 8 bits have other gray levels than it knows."
    )
