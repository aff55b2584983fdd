"""Encoder-decoders by name, from scratch or with their weights, checked against the tokenizer and the pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.pretrained import TRAIN_AGAIN, load_pretrained
from ipu_trainer.tasks.text.text_models import ModelChoice, check_task, check_vocabulary, random_model, set_vocabulary

# See text_models.Sizes.
SIZES: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "t5-nano": ("t5", {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4}),
    "t5-mini": ("t5", {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 4}),
    "t5-small": ("t5", {}),
    "bart-nano": (
        "bart",
        {
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
            "max_position_embeddings": 256,
        },
    ),
    "bart-base": (
        "bart",
        {
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
    ),
}
NO_DROPOUT: Dict[str, Dict[str, Any]] = {"t5": {"dropout_rate": 0.0}, "bart": {"dropout": 0.0}}


def build_model(model: str, choice: ModelChoice, tokenizer: Any, lengths: Sequence[int]) -> Any:
    """The model, float32: also where weights or configuration were saved in another type, unless overrides name a dtype.
    From scratch its vocabulary is len(tokenizer), with the tokenizer's ids; values of overrides, which the configuration has
    already, count instead.

    lengths: tokens of sources and targets. Raises UserError for a tokenizer with more tokens than the vocabulary has, lengths
    beyond the model's positions, or weights that are missing.
    """
    config = copy.deepcopy(choice.config)
    if not choice.from_scratch:
        check_shapes(config, len(tokenizer), lengths)
        return load_model(model)
    set_vocabulary(config, tokenizer, choice.overrides)
    # T5 begins with padding, the others with the end of text.
    begin = tokenizer.pad_token_id if config.model_type == "t5" else tokenizer.eos_token_id
    config.decoder_start_token_id = begin
    if getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = tokenizer.eos_token_id
    check_shapes(config, len(tokenizer), lengths)
    return random_model(AutoModelForSeq2SeqLM, config, choice.overrides)


def load_model(model: str) -> Any:
    """The model with its weights, float32. Raises UserError where tensors are missing but for a new head."""
    return load_pretrained(AutoModelForSeq2SeqLM, model, "Give another --model, or add --from_scratch true.")[0]


def load_finished(run_dir: Path) -> Any:
    """The model of a run. Raises UserError unless its weights hold exactly its tensors."""
    return load_pretrained(AutoModelForSeq2SeqLM, str(run_dir), TRAIN_AGAIN, finished=True)[0]


def check_encoder_decoder(model: str, config: Any) -> None:
    if not getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{model} is a {config.model_type}, not an encoder-decoder. Use T5 or BART ({', '.join(SIZES)}), or "
            "`ipu-trainer train language-modeling`."
        )
    check_task(model, config, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "text to text")


def check_shapes(config: Any, num_tokens: int, lengths: Sequence[int]) -> None:
    check_vocabulary(config, num_tokens)
    positions = getattr(config, "max_position_embeddings", None)  # T5 has none: its positions are relative
    for name, length in zip(("source_length", "target_length"), lengths):
        if length < 2 or (positions is not None and length > positions):
            raise UserError(f"{name} {length} must be from 2 to the model's {positions or 'any number of'} positions.")
