"""What run.json says of a chest X-ray run."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.tasks.chest_xray.data.dataset import PreparedChestXrays
from ipu_trainer.tasks.chest_xray.data.labels import pathologies
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.tasks.chest_xray.recipe_arguments import ChestXrayArguments
from ipu_trainer.tasks.recipe.run_record import training_settings
from ipu_trainer.training.arguments import IPUTrainingArguments


def resolved_settings(
    recipe: ChestXrayArguments,
    args: IPUTrainingArguments,
    config: IPUConfig,
    data: PreparedChestXrays,
    normalisation: Normalisation,
    loss: FindingLoss,
) -> Dict[str, Any]:
    """What run.json says of a run before it starts."""
    return {
        "task": "chest-xray",
        "model": recipe.model,
        "findings": data.findings,
        "pathologies": pathologies(data.findings),
        "seed": args.seed,
        "split_method": data.manifest["split"]["method"],
        "synthetic_data": data.manifest["source"]["csv"].endswith("phantoms.csv"),
        "data": {"folder": recipe.data, "fingerprint": data.fingerprint, "size": data.size},
        "settings": {
            "recipe": dataclasses.asdict(recipe),
            "training": training_settings(args),
            "ipu_config": config.to_dict(),
            "loss": dataclasses.asdict(loss),
            "augmentation": dataclasses.asdict(recipe.augmentation),
            "normalisation": dataclasses.asdict(normalisation),
        },
    }
