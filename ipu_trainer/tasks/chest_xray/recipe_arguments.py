"""The recipe's flags: ChestXrayArguments, its defaults, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.augmentation import NO_AUGMENTATION, Augmentation
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, load_prepared
from ipu_trainer.tasks.chest_xray.data.known_labels import has_unknown
from ipu_trainer.tasks.chest_xray.evaluation.metrics import check_replicates
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss, inverse_frequency
from ipu_trainer.tasks.folders import data_to_read
from ipu_trainer.tasks.recipe.flags import flag, parse_flags, recipe_defaults, training_arguments
from ipu_trainer.training.arguments import IPUTrainingArguments

# Pairs of one micro-batch make the ranking loss; fewer samples than this give it too few.
_SMALLEST_RANKED_MICRO_BATCH = 8
DEFAULTS = recipe_defaults(
    num_train_epochs=20.0,
    learning_rate=4e-4,
    weight_decay=0.05,
    warmup_ratio=0.1,
    eval_strategy="epoch",
    save_strategy="epoch",
    logging_steps=10,
    per_device_eval_batch_size=64,
    layer_decay=0.65,
    head_learning_rate_factor=5.0,
    drop_path=0.1,
)


@dataclass
class ChestXrayArguments:
    """What the recipe takes besides IPUTrainingArguments."""

    model: str = field(metadata={"help": "Model folder or Hub id, with its preprocessor_config.json."})
    data: str = flag(
        "",
        "Folder made by `ipu-trainer prepare chest-xray`; default: chest-xray in DATASETS_DIR or PUBLIC_DATASETS_DIR.",
    )
    loss: str = flag("bce", "bce or asymmetric.")
    ranking_weight: Optional[float] = flag(
        None, "Share of the pairwise ranking loss; default 0.5, or 0 for micro-batches below 8."
    )
    pos_weight: bool = flag(False, "Weigh positives by inverse frequency (at most 20).")
    balance: float = flag(0.0, "0 to 1: how far rare findings are drawn more often.")
    tail: str = flag("drop", "drop or pad what does not fill the last host step.")
    augment: bool = flag(True, "Augment training images.")
    rotation_degrees: float = flag(Augmentation.rotation_degrees, "Largest rotation.")
    scale: float = flag(Augmentation.scale, "Largest relative zoom.")
    aspect: float = flag(Augmentation.aspect, "Largest relative change of aspect.")
    shift: float = flag(Augmentation.shift, "Largest shift, as a share of the side.")
    brightness: float = flag(Augmentation.brightness, "Largest brightness offset.")
    contrast: float = flag(Augmentation.contrast, "Largest relative contrast change.")
    gamma: float = flag(Augmentation.gamma, "Largest relative gamma.")
    erasing: float = flag(Augmentation.erasing, "Probability of one erased rectangle.")
    horizontal_flip: bool = flag(False, "Flip left and right (dextrocardia: off).")
    report: bool = flag(True, "Write report.html at the end.")
    num_bootstrap: int = flag(1000, "Patient-bootstrap replicates for intervals.")

    def __post_init__(self) -> None:
        check_replicates(self.num_bootstrap)
        changed = [item.name for item in dataclasses.fields(Augmentation) if getattr(self, item.name) != item.default]
        if changed and not self.augment:
            raise UserError(
                f"--{changed[0]} {getattr(self, changed[0])} is of the augmentation, and --augment is False."
            )

    @property
    def augmentation(self) -> Augmentation:
        if not self.augment:
            return NO_AUGMENTATION
        return Augmentation(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Augmentation)})


def parse_arguments(argv: Sequence[str]) -> Tuple[ChestXrayArguments, IPUTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 32, or what a smaller training set allows.
    """
    recipe, values = parse_flags("chest-xray", ChestXrayArguments, argv, DEFAULTS)
    recipe.data = recipe.data or str(data_to_read("--data", "chest-xray"))
    if recipe.balance and values.get("train_sampling_strategy") == "sequential":
        raise UserError(
            f"--balance {recipe.balance} draws samples at random, which --train_sampling_strategy sequential forbids."
        )
    return recipe, training_arguments(IPUTrainingArguments, values, lambda: _default_micro_batch(recipe))


def finding_loss(
    recipe: ChestXrayArguments, args: IPUTrainingArguments, train_set: ChestXrayDataset, *evaluated: ChestXrayDataset
) -> FindingLoss:
    """The loss of a run. Unknown labels in any of its data sets mask it."""
    micro_batch = args.per_device_train_batch_size
    weight = recipe.ranking_weight
    if weight is None:
        weight = 0.5 if micro_batch >= _SMALLEST_RANKED_MICRO_BATCH else 0.0
    elif weight and micro_batch < 2:
        raise UserError(
            f"ranking_weight {weight} compares samples of a micro-batch, but the micro-batch is {micro_batch}. "
            "Use --ranking_weight 0, or a --per_device_train_batch_size of at least 2 (8 works well)."
        )
    pos_weight = inverse_frequency(train_set.labels) if recipe.pos_weight else None
    masked = any(has_unknown(data_set.labels) for data_set in (train_set, *evaluated))
    return FindingLoss(recipe.loss, weight, pos_weight, label_smoothing=args.label_smoothing_factor, masked=masked)


def _default_micro_batch(recipe: ChestXrayArguments) -> int:
    num_samples = len(load_prepared(recipe.data).split("train"))
    return min(32, 1 << max(0, num_samples.bit_length() - 1))
