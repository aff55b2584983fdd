"""A finished run on any prepared data set: thresholds from its validation, findings matched by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch

from ipu_trainer.atomic import remove_leftovers
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.splits import SPLITS
from ipu_trainer.tasks.chest_xray.evaluation import metrics as metric
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import number_or_nan
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import sigmoid
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, load_finished, load_normalisation
from ipu_trainer.tasks.chest_xray.report import artifacts as report
from ipu_trainer.tasks.chest_xray.report.html_report import write_report
from ipu_trainer.tasks.reporting.run_report import report_or_reason
from ipu_trainer.tasks.run_record import read_run
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.trainer import IPUTrainer


def evaluate(run_dir: Path, data_dir: Path, split: str, output: Path, num_bootstrap: int = 1000) -> Dict[str, Any]:
    """Evaluate a finished run on a split of any prepared data set; findings are matched by name.

    Findings that the model does not know are named in the result; those that the data never shows are undefined.
    """
    metric.check_replicates(num_bootstrap)
    record = read_run(run_dir)
    data = load_prepared(data_dir)
    subject = data.split(split)
    if not len(subject):
        raise UserError(f"the {split} split of {data_dir} is empty. Evaluate another of {', '.join(SPLITS)}, all.")
    findings: List[str] = record["findings"]
    normalisation = load_normalisation(run_dir, data.size, data.manifest["resample"])
    model = load_finished(run_dir)
    settings = {**record["settings"]["training"], **record["settings"]["recipe"]}
    precision = settings.get("precision", "auto")
    args = IPUTrainingArguments(
        output_dir=str(output),
        per_device_eval_batch_size=64,
        precision=precision if precision in ("fp32", "bf16") else "auto",  # fp16 was a device's, or a GPU's
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=["none"],
        seed=record["seed"],
    )
    collate = ChestXrayCollator(normalisation)

    def collate_images(samples: Any) -> Dict[str, Any]:  # the labels may be of other findings than the model's outputs
        return {"pixel_values": collate(samples)["pixel_values"]}

    trainer = IPUTrainer(model=model, args=args, data_collator=collate_images)
    known = [name for name in findings if name in data.findings]
    truth = np.zeros((len(subject), len(findings)), dtype=np.float32)
    for name in known:
        truth[:, findings.index(name)] = subject.labels[:, data.findings.index(name)]
    logits = trainer.predict(subject).predictions
    probability = sigmoid(np.asarray(logits, dtype=np.float64))
    thresholds = {name: number_or_nan(value) for name, value in record["thresholds"].items()}
    result = {
        "split": split,
        "run": str(Path(run_dir).resolve()),
        "data": str(Path(data_dir).resolve()),
        "data_fingerprint": data.fingerprint,
        "findings_unknown_to_the_model": [name for name in data.findings if name not in findings],
        **metric.evaluate_predictions(
            truth, probability, findings, subject.table, thresholds, num_bootstrap, record["seed"]
        ),
    }
    remove_leftovers(output)
    report.write_evaluation(output, result, truth, probability, findings, subject.table)
    report_or_reason(write_report, output)
    return result
