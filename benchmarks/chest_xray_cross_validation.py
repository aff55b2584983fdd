"""AUROC of the recipe on unseen patients: patient-disjoint k-fold cross-validation against a plain fine-tune.

    python benchmarks/chest_xray_cross_validation.py --data PREPARED --model MODEL --output cv.json --seeds 3

Every image of the prepared data set is predicted once per seed by a model that never saw its patient. Prints, for each
setting, the macro mean AUROC over 14 findings: mean over folds, and of all folds' predictions pooled.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.known_labels import prevalence
from ipu_trainer.tasks.chest_xray.data.splits import patient_position
from ipu_trainer.tasks.chest_xray.evaluation.metrics import mean_auroc
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_model
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, load_normalisation
from ipu_trainer.tasks.chest_xray.recipe_arguments import finding_loss, parse_arguments

SETTINGS = {
    "recipe": [],
    "plain fine-tune": [
        *("--num_train_epochs", "5", "--learning_rate", "5e-5", "--lr_scheduler_type", "linear", "--warmup_steps", "0"),
        *("--layer_decay", "1", "--head_learning_rate_factor", "1", "--drop_path", "0", "--weight_decay", "0"),
        *("--augment", "False", "--ranking_weight", "0"),
    ],
}


def run_fold(data, model, setting, fold, folds, seed):
    """(positions, float64 probabilities) of the images in one fold."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        flags = ["--data", str(data.folder), "--model", model, "--output", scratch, "--seed", str(seed), *setting]
        recipe, args = parse_arguments(
            [*flags, "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "True"]
        )
        all_images = data.split("all")
        held_out = np.array([int(patient_position(patient) * folds) == fold for patient in all_images.patient_ids])
        train_set = all_images.subset(np.flatnonzero(~held_out))
        transformers.set_seed(seed)
        trainer = ChestXrayTrainer(
            model=load_model(model, data.findings, prevalence(train_set.labels)).model,
            args=args,
            train_dataset=train_set,
            data_collator=ChestXrayCollator(
                load_normalisation(model, data.size, data.manifest["resample"]), recipe.augmentation, seed
            ),
            finding_loss=finding_loss(recipe, args, train_set),
            balance=recipe.balance,
        )
        trainer.train()
        positions = np.flatnonzero(held_out)
        return positions, trainer.probabilities(all_images.subset(positions))


def summarise(data, predictions):
    all_images, rows = data.split("all"), {}
    for name, by_seed in predictions.items():
        pooled, folds = [], []
        for by_fold in by_seed.values():
            score = np.full(all_images.labels.shape, np.nan)
            for positions, probability in by_fold:
                score[positions] = probability
                folds.append(mean_auroc(all_images.labels[positions], np.asarray(probability), data.findings))
            if np.isfinite(score).all():
                pooled.append(mean_auroc(all_images.labels, score, data.findings))
        rows[name] = {
            "fold_mean": float(np.mean(folds)),
            "pooled_by_seed": pooled,
            "pooled": float(np.mean(pooled)) if pooled else None,
            "folds": folds,
        }
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--worker", type=int, default=0, help="this process's share, for several on one GPU")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    data = load_prepared(arguments.data)
    jobs = [
        (name, seed, fold) for seed in range(arguments.seeds) for name in SETTINGS for fold in range(arguments.folds)
    ]
    predictions, started = {}, time.time()
    for number, (name, seed, fold) in enumerate(jobs):
        if number % arguments.workers != arguments.worker:
            continue
        positions, probability = run_fold(data, arguments.model, SETTINGS[name], fold, arguments.folds, seed)
        predictions.setdefault(name, {}).setdefault(str(seed), []).append([positions.tolist(), probability.tolist()])
        auroc = mean_auroc(data.split("all").labels[positions], probability, data.findings)
        print(f"{name:16} seed {seed} fold {fold}: {auroc:.4f}  ({time.time() - started:.0f} s)", flush=True)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        write_json(arguments.output, {"device": device, "torch": torch.__version__, "predictions": predictions})
    print(json.dumps(summarise(data, predictions), indent=1))


if __name__ == "__main__":
    sys.exit(main())
