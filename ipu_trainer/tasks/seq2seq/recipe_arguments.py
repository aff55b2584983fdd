"""The recipe's flags: Seq2SeqArguments, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.recipe.flags import check_fraction, flag, parse_flags, recipe_defaults, training_arguments
from ipu_trainer.training.seq2seq import IPUSeq2SeqTrainingArguments

DEFAULTS = recipe_defaults(
    num_train_epochs=6.0,
    learning_rate=1e-3,
    weight_decay=0.01,
    warmup_ratio=0.05,
    eval_strategy="epoch",
    save_strategy="epoch",
    logging_steps=20,
    per_device_eval_batch_size=16,
    predict_with_generate=True,
    generation_num_beams=1,
)


@dataclass
class Seq2SeqArguments:
    """What the recipe takes besides IPUSeq2SeqTrainingArguments."""

    pairs: Optional[str] = flag(
        None, "A .jsonl file of source and target; default: functions and docstrings of installed code."
    )
    model: str = flag(
        "t5-nano", "t5-nano, -mini or -small, bart-nano or -base, from scratch; or a model folder or Hub id."
    )
    from_scratch: bool = flag(False, "Random weights, also where the model has some.")
    model_overrides: str = flag("", "Configuration values of a model from scratch: num_layers=4 d_model=192.")
    source_prefix: str = flag("", 'Put before each source, as T5 was taught: "summarize: ".')
    tokenizer: Optional[str] = flag(None, "Folder or Hub id; default: the model's own, or one trained from the pairs.")
    vocab_size: int = flag(4096, "Tokens of a tokenizer that is trained.")
    source_length: int = flag(96, "Tokens of a source; longer ones are cut.")
    target_length: int = flag(32, "Tokens of a target; longer ones are cut.")
    max_pairs: int = flag(6000, "Most pairs to take; 0 is all.")
    max_validation_pairs: int = flag(200, "Most pairs to generate for; 0 is all.")
    validation_fraction: float = flag(0.1, "Share of the text in packages (or groups) that are not trained on.")

    def __post_init__(self) -> None:
        for name, least in (("source_length", 1), ("target_length", 1), ("max_pairs", 0), ("max_validation_pairs", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} must be at least {least}.")
        check_fraction(self.validation_fraction)


def parse_arguments(argv: Sequence[str]) -> Tuple[Seq2SeqArguments, IPUSeq2SeqTrainingArguments]:
    """Command-line flags to arguments, the recipe's defaults in place of Trainer's.

    The micro-batch, unless given, is the profile's published one, or 16. generation_max_length is target_length.
    """
    recipe, values = parse_flags("seq2seq", Seq2SeqArguments, argv, DEFAULTS, IPUSeq2SeqTrainingArguments)
    if values["generation_max_length"] is None:
        values["generation_max_length"] = recipe.target_length
    return recipe, training_arguments(IPUSeq2SeqTrainingArguments, values, lambda: 16)
