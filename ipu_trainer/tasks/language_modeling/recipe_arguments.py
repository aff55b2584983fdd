"""The recipe's flags: LanguageModelingArguments, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.recipe.flags import (
    check_fraction,
    check_read,
    flag,
    parse_flags,
    recipe_defaults,
    training_arguments,
)
from ipu_trainer.training.arguments import IPUTrainingArguments

DEFAULTS = recipe_defaults(
    num_train_epochs=1.0,
    learning_rate=1e-3,
    weight_decay=0.1,
    adam_beta2=0.95,
    warmup_ratio=0.05,
    eval_strategy="steps",
    eval_steps=200,
    save_steps=200,
    logging_steps=20,
    per_device_eval_batch_size=16,
)


@dataclass
class LanguageModelingArguments:
    """What the recipe takes besides IPUTrainingArguments."""

    corpus: Optional[str] = flag(
        None, "Folder or file of .txt, .md, .py or .jsonl; default: the Python code installed here."
    )
    model: str = flag(
        "gpt2-mini",
        "gpt2-nano, -mini, -small, -medium, -large or -xl, bert-mini or -base, roberta-mini or -base, from "
        "scratch; or a model folder or Hub id.",
    )
    from_scratch: bool = flag(False, "Random weights, also where the model has some.")
    model_overrides: str = flag("", "Configuration values of a model from scratch: n_layer=6 n_embd=384.")
    objective: str = flag("auto", "causal, masked, or auto: as the model's type says.")
    mlm_probability: float = flag(0.15, "Share of masked tokens, of a masked model.")
    tokenizer: Optional[str] = flag(None, "Folder or Hub id; default: the model's own, or one trained from the corpus.")
    vocab_size: int = flag(8192, "Tokens of a tokenizer that is trained.")
    sequence_length: int = flag(0, "Tokens in a row; default 128 for nano and mini, else the model's positions.")
    files: str = flag("data-science", "data-science or all, of the installed Python code.")
    max_megabytes: float = flag(4.0, "Largest part of the corpus to take; 0 is all.")
    validation_fraction: float = flag(0.1, "Share of the text in packages (or folders) that are not trained on.")
    prompts: str = flag(
        "import numpy as np\\n||def plot(||class ", "What samples begin with, parted by ||; empty prints none."
    )
    sample_tokens: int = flag(60, "Tokens of each sample.")

    def __post_init__(self) -> None:
        if self.files not in ("data-science", "all"):
            raise UserError(f"files {self.files!r} is not one of data-science, all.")
        if self.corpus and self.files != "data-science":
            raise UserError(
                f"files {self.files!r} is of the installed Python code, and corpus {self.corpus} is read. Give one."
            )
        if self.sample_tokens < 1:
            raise UserError(f'sample_tokens {self.sample_tokens} must be at least 1; --prompts "" prints no samples.')
        if not self.prompts:
            check_read(self, "sample_tokens", False, "there are no prompts")
        if self.max_megabytes < 0:
            raise UserError(f"max_megabytes {self.max_megabytes} must be above 0, or 0 for all.")
        check_fraction(self.validation_fraction)
        if not 0.0 < self.mlm_probability < 1.0:
            raise UserError(f"mlm_probability {self.mlm_probability} must be above 0 and below 1 (0.15 is usual).")

    @property
    def sample_prompts(self) -> Tuple[str, ...]:
        return tuple(text.replace("\\n", "\n") for text in self.prompts.split("||") if text)


def parse_arguments(argv: Sequence[str]) -> Tuple[LanguageModelingArguments, IPUTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 16.
    """
    recipe, values = parse_flags("language-modeling", LanguageModelingArguments, argv, DEFAULTS)
    return recipe, training_arguments(IPUTrainingArguments, values, lambda: 16)
