"""Properties of a model that registration does not show: one row per `model_type` of its config.

Most models need no row. A row has the order in which stacks run where that is not the order of registration, layers that are one
layer run several times, and settings that draw random numbers in Python: a device compiles forward once, so such a draw would
never change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Tuple


@dataclass(frozen=True)
class Architecture:
    """stack_order: ends of the stacks' names in the order in which they run. needs: config values a device can have.

    shares_layers: why layers cannot be placed on several IPUs, or "". not_head: ends of names of modules that are
    registered after the layers, but run before them.
    """

    stack_order: Tuple[str, ...] = ()
    needs: Mapping[str, Any] = field(default_factory=dict)
    shares_layers: str = ""
    not_head: Tuple[str, ...] = ()


_NO_LAYER_DROP: Dict[str, Any] = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
_SPEECH: Dict[str, Any] = {**_NO_LAYER_DROP, "apply_spec_augment": False}

ARCHITECTURES: Dict[str, Architecture] = {
    "albert": Architecture(
        shares_layers="ALBERT runs the layers of a group num_hidden_layers / num_hidden_groups times with the same "
        "weights, and a weight lives on one IPU"
    ),
    **{
        name: Architecture(needs=_NO_LAYER_DROP, not_head=("layernorm_embedding",))
        for name in ("bart", "mbart", "plbart", "mvp", "blenderbot", "blenderbot-small")
    },
    "clip": Architecture(stack_order=("vision_model.encoder.layers", "text_model.encoder.layers")),
    "lxmert": Architecture(stack_order=("encoder.layer", "encoder.r_layers", "encoder.x_layers")),
    "mpnet": Architecture(needs=_NO_LAYER_DROP, not_head=("relative_attention_bias",)),
    "wav2vec2": Architecture(needs=_SPEECH),
    "hubert": Architecture(needs=_SPEECH),
    "wavlm": Architecture(needs=_SPEECH),
    "whisper": Architecture(needs=_SPEECH),
}
_DEFAULT = Architecture(needs=_NO_LAYER_DROP)


def architecture_of(model: Any) -> Architecture:
    """The row of a model's type, or the default one."""
    return ARCHITECTURES.get(getattr(getattr(model, "config", None), "model_type", ""), _DEFAULT)
