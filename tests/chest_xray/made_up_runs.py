"""Finished runs without a training: predictions are made up, everything that a report reads is written as a run would."""

import numpy as np

from ipu_trainer.atomic import write_json
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.tasks.chest_xray.evaluation.metrics import choose_thresholds, evaluate_predictions
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import predictions_csv
from ipu_trainer.tasks.run_record import RUN_FILE, write_history

FINDINGS = ("Effusion", "Mass", "No Finding", "Nodule", "Pneumothorax")


def predictions(num_images, findings=FINDINGS, seed=0, skill=1.0):
    """truth and probability (num_images, num_findings): the larger skill, the better they agree."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((num_images, len(findings))) < 0.3).astype(np.float32)
    logits = -1 + skill * (truth - 0.3) + generator.normal(0, 1, truth.shape)
    return truth, 1 / (1 + np.exp(-logits))


def write_run(folder, truth, probability, findings=FINDINGS, names=None, num_bootstrap=20, **changes):
    """run.json, metrics.json, predictions.csv and history.json in folder; changes go into run.json."""
    count = len(truth)
    names = names or [f"{i // 3:08d}_{i % 3:03d}.png" for i in range(count)]
    table = {
        "file_name": names,
        "patient_id": [name.rsplit("/", 1)[-1].split("_")[0] for name in names],
        "sex": ["FM"[i % 2] for i in range(count)],
        "age": [20 + i % 60 for i in range(count)],
        "view": [("AP", "PA", None)[i % 3] for i in range(count)],
    }
    thresholds = choose_thresholds(truth, probability, findings)
    metrics = evaluate_predictions(truth, probability, findings, table, thresholds, num_bootstrap)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", {"split": "test", **metrics})
    (folder / "predictions.csv").write_text(predictions_csv(truth, probability, findings, table), encoding="utf-8")
    write_history(folder, [{"epoch": e / 4, "loss": 1 / e, "eval_mean_auroc_14": 0.5 + e / 100} for e in range(1, 9)])
    training = {
        "optim": "adamw_torch",
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 4,
        "ipu_config_overrides": None,
        "learning_rate": 0.001,
    }
    record = {
        "status": "finished",
        "task": "chest-xray",
        "model": "google/vit-small",
        "findings": list(findings),
        "seed": 3,
        "split_method": "official",
        "synthetic_data": False,
        "data": {"folder": str(folder / "gone"), "fingerprint": "f" * 32, "size": 32},
        "backend": {"name": "host", "reason": "asked for", "torch_device": "cpu"},
        "precision": {"name": "fp32", "reason": "asked for"},
        "versions": {"ipu_trainer": "0.1.0", "torch": "2"},
        "batch_table": "global batch  4",
        "thresholds": thresholds,
        "evaluated_split": "test",
        "settings": {"recipe": {"ipu_config": None}, "training": training, "ipu_config": IPUConfig().to_dict()},
    }
    write_json(folder / RUN_FILE, {**record, **changes})
    return folder
