"""Private settings of transformers' model configurations."""

from __future__ import annotations

from typing import Any

from ipu_trainer.compat.internals import Internal

ATTENTION = Internal(
    "transformers.PretrainedConfig._attn_implementation",
    "a configuration has no public setting for it: from_pretrained() and from_config() take one, a model's class does not",
    "4.29",
    "5.24",
    "tests/compat/test_transformers_configs.py::test_eager_attention_computes_probabilities_as_tensors",
)


def use_eager_attention(config: Any) -> None:
    """Let models of this configuration compute attention probabilities as tensors. 4.29 always does."""
    config._attn_implementation = "eager"
