"""The recipe's flags: ChestXrayArguments, the defaults that stand in for Trainer's, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

import torch

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.config.profiles import Profile, load_profile
from ipu_trainer.tasks.chest_xray.data.augmentation import NO_AUGMENTATION, Augmentation
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset, load_prepared
from ipu_trainer.tasks.chest_xray.evaluation.metrics import check_replicates
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss, inverse_frequency
from ipu_trainer.tasks.folders import data_to_read
from ipu_trainer.tasks.recipe.flags import parse_flags, takes_bf16
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.tracking import default_reporters

# Pairs of one micro-batch make the ranking loss; fewer samples than this give it too few.
_SMALLEST_RANKED_MICRO_BATCH = 8
_RECIPE = compat.training_defaults(
    num_train_epochs=20.0,
    learning_rate=4e-4,
    weight_decay=0.05,
    warmup_ratio=0.1,
    lr_scheduler_type="cosine",
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    save_safetensors=True,
    logging_steps=10,
    per_device_eval_batch_size=64,
    remove_unused_columns=False,
    dataloader_pin_memory=torch.cuda.is_available(),
    report_to=default_reporters(),
    logging_nan_inf_filter=False,  # it waits for the GPU in every step, and hides what went wrong
)
_OWN_RECIPE = {"layer_decay": 0.65, "head_learning_rate_factor": 5.0, "drop_path": 0.1}


@dataclass
class ChestXrayArguments:
    """What the recipe takes besides IPUTrainingArguments."""

    model: str = field(metadata={"help": "Model folder or Hub id, with its preprocessor_config.json."})
    data: str = field(
        default="",
        metadata={
            "help": "Folder made by `ipu-trainer prepare chest-xray`; default: chest-xray in DATASETS_DIR or "
            "PUBLIC_DATASETS_DIR."
        },
    )
    ipu_config: Optional[str] = field(default=None, metadata={"help": "Profile name, ipu_config.json or folder."})
    precision: str = field(
        default="auto", metadata={"help": "auto, bf16 or fp32; auto takes bf16 on a GPU that has it."}
    )
    loss: str = field(default="bce", metadata={"help": "bce or asymmetric."})
    ranking_weight: Optional[float] = field(
        default=None,
        metadata={"help": "Share of the pairwise ranking loss; default 0.5, or 0 for micro-batches below 8."},
    )
    pos_weight: bool = field(default=False, metadata={"help": "Weigh positives by inverse frequency (at most 20)."})
    balance: float = field(default=0.0, metadata={"help": "0 to 1: how far rare findings are drawn more often."})
    tail: str = field(default="drop", metadata={"help": "drop or pad what does not fill the last host step."})
    augment: bool = field(default=True, metadata={"help": "Augment training pictures."})
    rotation_degrees: float = field(default=Augmentation.rotation_degrees, metadata={"help": "Largest rotation."})
    scale: float = field(default=Augmentation.scale, metadata={"help": "Largest relative zoom."})
    aspect: float = field(default=Augmentation.aspect, metadata={"help": "Largest relative change of aspect."})
    shift: float = field(default=Augmentation.shift, metadata={"help": "Largest shift, as a share of the side."})
    brightness: float = field(default=Augmentation.brightness, metadata={"help": "Largest brightness offset."})
    contrast: float = field(default=Augmentation.contrast, metadata={"help": "Largest relative contrast change."})
    gamma: float = field(default=Augmentation.gamma, metadata={"help": "Largest relative gamma."})
    erasing: float = field(default=Augmentation.erasing, metadata={"help": "Probability of one erased rectangle."})
    horizontal_flip: bool = field(default=False, metadata={"help": "Flip left and right (dextrocardia: off)."})
    report: bool = field(default=True, metadata={"help": "Write report.html at the end."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Patient-bootstrap replicates for intervals."})

    def __post_init__(self) -> None:
        check_replicates(self.num_bootstrap)
        changed = [item.name for item in dataclasses.fields(Augmentation) if getattr(self, item.name) != item.default]
        if changed and not self.augment:
            raise ValueError(
                f"--{changed[0]} {getattr(self, changed[0])} is of the augmentation, and --augment is False."
            )

    @property
    def augmentation(self) -> Augmentation:
        if not self.augment:
            return NO_AUGMENTATION
        names = [item.name for item in dataclasses.fields(Augmentation)]
        return Augmentation(**{name: getattr(self, name) for name in names})


def parse_arguments(argv: Sequence[str]) -> Tuple[ChestXrayArguments, IPUTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 32, or what a smaller training set allows.
    """
    defaults = {**_RECIPE, **_OWN_RECIPE, "per_device_train_batch_size": 0}
    recipe, values = parse_flags("chest-xray", ChestXrayArguments, argv, defaults)
    recipe.data = recipe.data or str(data_to_read("--data", "chest-xray"))
    if recipe.balance and values.get("train_sampling_strategy") == "sequential":
        raise ValueError(
            f"--balance {recipe.balance} draws samples at random, which --train_sampling_strategy sequential forbids."
        )
    if not values["per_device_train_batch_size"]:
        values["per_device_train_batch_size"] = _default_micro_batch(recipe)
    values["bf16"] = takes_bf16(recipe.precision, values)
    return recipe, IPUTrainingArguments(**values)


def finding_loss(recipe: ChestXrayArguments, args: IPUTrainingArguments, train_set: ChestXrayDataset) -> FindingLoss:
    micro_batch = args.per_device_train_batch_size
    weight = recipe.ranking_weight
    if weight is None:
        weight = 0.5 if micro_batch >= _SMALLEST_RANKED_MICRO_BATCH else 0.0
    elif weight and micro_batch < 2:
        raise ValueError(
            f"ranking_weight {weight} compares samples of a micro-batch, but the micro-batch is {micro_batch}. "
            "Use --ranking_weight 0, or a --per_device_train_batch_size of at least 2 (8 works well)."
        )
    pos_weight = inverse_frequency(train_set.labels) if recipe.pos_weight else None
    return FindingLoss(recipe.loss, weight, pos_weight, label_smoothing=args.label_smoothing_factor)


def _default_micro_batch(recipe: ChestXrayArguments) -> int:
    profile: Optional[Profile] = load_profile(recipe.ipu_config) if recipe.ipu_config else None
    if profile is not None and profile.micro_batch is not None:
        return profile.micro_batch
    num_samples = len(load_prepared(recipe.data).split("train"))
    return min(32, 1 << max(0, num_samples.bit_length() - 1))
