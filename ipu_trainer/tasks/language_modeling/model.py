"""Language models by name, from scratch or from a folder or the Hub, checked against the tokenizer and the rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.pretrained import TRAIN_AGAIN, load_pretrained
from ipu_trainer.tasks.text.text_models import ModelChoice, check_vocabulary, random_model, set_vocabulary

# See text_models.Sizes. GPT-2's sizes are the published ones.
SIZES: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "gpt2-nano": ("gpt2", {"n_layer": 2, "n_embd": 128, "n_head": 4}),
    "gpt2-mini": ("gpt2", {"n_layer": 4, "n_embd": 256, "n_head": 4}),
    "gpt2-small": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_layer": 24, "n_embd": 1024, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_layer": 36, "n_embd": 1280, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "bert-mini": (
        "bert",
        {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "bert-base": ("bert", {}),
    "roberta-mini": (
        "roberta",
        {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "roberta-base": ("roberta", {}),
}
# One pass over little text: dropout only slows these down.
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
_MASKED_TYPES = {
    "bert", "roberta", "distilbert", "electra", "deberta", "deberta-v2", "albert", "camembert", "xlm-roberta", "mpnet",
    "modernbert",
}  # fmt: skip


def is_masked(config: Any, objective: str) -> bool:
    """Whether the model learns masked tokens. objective "auto": as its architecture, or else its type, says."""
    if objective not in ("auto", "causal", "masked"):
        raise UserError(f"objective {objective!r} is not one of auto, causal, masked.")
    if objective != "auto":
        return objective == "masked"
    names = config.architectures or []
    if any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in names):
        return config.model_type in _MASKED_TYPES
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return False
    return config.model_type in _MASKED_TYPES


def build_model(model: str, choice: ModelChoice, tokenizer: Any, sequence_length: int, masked: bool) -> Any:
    """The model, float32: also where weights or configuration were saved in another type, unless overrides name a dtype.
    From scratch its vocabulary is len(tokenizer), with the tokenizer's bos, eos and pad ids; a vocab_size of overrides, which
    the configuration has already, counts instead.

    Raises UserError where the tokenizer has more tokens than the model, rows are longer than its positions, or weights are
    missing.
    """
    config = copy.deepcopy(choice.config)
    if not choice.from_scratch:
        check_shapes(config, len(tokenizer), sequence_length)
        return load_model(model, masked)
    set_vocabulary(config, tokenizer, choice.overrides)
    if not masked and config.model_type in _MASKED_TYPES:
        config.is_decoder = True
    check_shapes(config, len(tokenizer), sequence_length)
    return random_model(AutoModelForMaskedLM if masked else AutoModelForCausalLM, config, choice.overrides)


def load_model(model: str, masked: bool) -> Any:
    """The model with its weights, float32. Raises UserError where tensors are missing but for a new head."""
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return load_pretrained(auto, model, "Give another --model, or add --from_scratch true.")[0]


def load_finished(run_dir: Path, masked: bool) -> Any:
    """The model of a run. Raises UserError unless its weights hold exactly its tensors."""
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return load_pretrained(auto, str(run_dir), TRAIN_AGAIN, finished=True)[0]


def num_positions(config: Any) -> Optional[int]:
    """Tokens of the longest row; None where the model has no limit."""
    positions: Optional[int] = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in ("roberta", "camembert", "xlm-roberta"):
        return positions - 2  # theirs begin after the padding id
    return positions


def check_shapes(config: Any, num_tokens: int, sequence_length: int) -> None:
    check_vocabulary(config, num_tokens)
    positions = num_positions(config)
    if positions is not None and sequence_length > positions:
        raise UserError(
            f"sequence_length {sequence_length} is longer than the model's {positions} positions. Use at most "
            f"{positions}, or from scratch --model_overrides max_position_embeddings={sequence_length + 2}."
        )
