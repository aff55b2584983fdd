"""The recipe's flags: Seq2SeqArguments, and the defaults that stand in for Trainer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

import torch

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.recipe.flags import check_fraction, parse_flags, takes_bf16
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainingArguments
from ipu_trainer.training.tracking import default_reporters

_RECIPE = compat.training_defaults(
    num_train_epochs=6.0,
    learning_rate=1e-3,
    weight_decay=0.01,
    warmup_ratio=0.05,
    lr_scheduler_type="cosine",
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    save_safetensors=True,
    logging_steps=20,
    per_device_eval_batch_size=16,
    predict_with_generate=True,
    generation_num_beams=1,
    remove_unused_columns=False,
    dataloader_pin_memory=torch.cuda.is_available(),
    report_to=default_reporters(),
    logging_nan_inf_filter=False,  # it waits for the GPU in every step, and hides what went wrong
)


@dataclass
class Seq2SeqArguments:
    """What the recipe takes besides IPUSeq2SeqTrainingArguments."""

    pairs: Optional[str] = field(
        default=None,
        metadata={"help": "A .jsonl file of source and target; default: functions and docstrings of installed code."},
    )
    model: str = field(
        default="t5-nano",
        metadata={"help": "t5-nano, -mini or -small, bart-nano or -base, from scratch; or a model folder or Hub id."},
    )
    from_scratch: bool = field(default=False, metadata={"help": "Random weights, also where the model has some."})
    model_overrides: str = field(
        default="", metadata={"help": "Configuration values of a model from scratch: num_layers=4 d_model=192."}
    )
    source_prefix: str = field(
        default="", metadata={"help": 'Put before each source, as T5 was taught: "summarize: ".'}
    )
    tokenizer: Optional[str] = field(
        default=None, metadata={"help": "Folder or Hub id; default: the model's own, or one trained from the pairs."}
    )
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of a tokenizer that is trained."})
    source_length: int = field(default=96, metadata={"help": "Tokens of a source; longer ones are cut."})
    target_length: int = field(default=32, metadata={"help": "Tokens of a target; longer ones are cut."})
    max_pairs: int = field(default=6000, metadata={"help": "Most pairs to take; 0 is all."})
    max_validation_pairs: int = field(default=200, metadata={"help": "Most pairs to generate for; 0 is all."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the text in packages (or groups) that are not trained on."}
    )
    precision: str = field(
        default="auto", metadata={"help": "auto, bf16 or fp32; auto takes bf16 on a GPU that has it."}
    )
    ipu_config: Optional[str] = field(default=None, metadata={"help": "Profile name, ipu_config.json or folder."})

    def __post_init__(self) -> None:
        for name, least in (("source_length", 1), ("target_length", 1), ("max_pairs", 0), ("max_validation_pairs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} must be at least {least}.")
        check_fraction(self.validation_fraction)


def parse_arguments(argv: Sequence[str]) -> Tuple[Seq2SeqArguments, IPUSeq2SeqTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 16. generation_max_length is target_length.
    """
    defaults = {**_RECIPE, "per_device_train_batch_size": 0}
    recipe, values = parse_flags("seq2seq", Seq2SeqArguments, argv, defaults, IPUSeq2SeqTrainingArguments)
    if not values["per_device_train_batch_size"]:
        profile = load_profile(recipe.ipu_config) if recipe.ipu_config else None
        values["per_device_train_batch_size"] = (profile.micro_batch if profile else None) or 16
    if values["generation_max_length"] is None:
        values["generation_max_length"] = recipe.target_length
    values["bf16"] = takes_bf16(recipe.precision, values)
    return recipe, IPUSeq2SeqTrainingArguments(**values)
