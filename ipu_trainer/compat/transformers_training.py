"""transformers' internals that are replaced, read or set: checks of inputs, generation settings, and the attention in use."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Dict, Optional

import torch
from transformers import PreTrainedModel

from ipu_trainer.compat.internals import Internal, replaced

try:
    from transformers import masking_utils as masking_utils
except ImportError:  # before 4.53 each model made its own attention masks
    masking_utils = None  # type: ignore[assignment]

_TESTS = "tests/training/test_"
PACKING_CHECK = Internal(
    "transformers.masking_utils.find_packed_sequence_indices",
    "it reads a number from the GPU, before the registry of mask functions is used",
    "4.53",
    "5.24",
    f"{_TESTS}host_sync.py::test_positions_of_one_row_for_all_are_not_searched_on_a_device",
)
PADDING_WARNING = Internal(
    "transformers.PreTrainedModel.warn_if_padding_and_no_attention_mask",
    "it reads a number from the GPU",
    "4.53",
    "5.24",
    f"{_TESTS}host_sync.py::test_the_padding_warning_comes_once_the_tokens_have_arrived_and_at_the_end",
)
ATTENTION = Internal(
    "transformers.PretrainedConfig._attn_implementation",
    "a configuration has no public setting for it, and set_attn_implementation()'s choice has no public name",
    "4.29",
    "5.24",
    "tests/compat/test_transformers_configs.py::test_eager_attention_computes_probabilities_as_tensors",
)

GENERATION = Internal(
    "transformers.Seq2SeqTrainer._gen_kwargs",
    "settings of evaluate() and predict() for the steps in them, with _pad_tensors_to_max_len for what they return",
    "4.29",
    "5.24",
    f"{_TESTS}seq2seq.py::test_evaluation_takes_generation_settings_and_the_arguments_defaults",
)


def generation_settings(trainer: Any) -> Dict[str, Any]:
    """What evaluate() or predict() of a Seq2SeqTrainer was given for generate()."""
    return dict(getattr(trainer, "_gen_kwargs", {}))


def padded_tokens(trainer: Any, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Tokens (samples, length), padded as Seq2SeqTrainer pads."""
    padded: torch.Tensor = trainer._pad_tensors_to_max_len(tokens, length)
    return padded


def packing_check(make: Callable[[Any], Any]) -> ContextManager[None]:
    """Inside the block models look for several sequences in a row with make(stock function)."""
    return replaced(PACKING_CHECK, masking_utils, make)


def padding_warning(make: Callable[[Any], Any]) -> ContextManager[None]:
    """Inside the block models warn of padding without an attention mask with make(stock method)."""
    return replaced(PADDING_WARNING, PreTrainedModel, make)


def attention_implementation(config: Any) -> Optional[str]:
    """ "sdpa", "eager" or another name of the attention registry; None in transformers 4.29, which has one implementation."""
    return getattr(config, "_attn_implementation", None)


def use_eager_attention(config: Any) -> None:
    """Let models of this configuration compute attention probabilities as tensors. 4.29 always does."""
    config._attn_implementation = "eager"
