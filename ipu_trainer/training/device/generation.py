"""Generation on a device: Hugging Face's generate() on the host, each forward one device call of a fixed shape.

    encoder   once a batch: (rows, source length)           -> hidden states
    decoder   once a token: (rows x beams, final length)    -> scores of one position, (rows x beams, vocabulary)

A causal decoder's scores at a position do not depend on what stands after it, so its input can be padded to the final length
and every call has the shape of the first: nothing is compiled twice. Beam search, sampling and logits processors stay
what transformers makes of them, since they run in generate() itself. There is no cache of keys and values: its shape grows.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Dict, Mapping, Optional

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from ipu_trainer.training.device.executors import DeviceRun

# Settings of generate() whose forward passes have other shapes or return more than scores.
_OTHER_FORWARDS = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "penalty_alpha",
    "dola_layers",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "guidance_scale",
    "prefill_chunk_size",
)


def why_not_on_device(model: Any, sources: Mapping[str, Any], settings: Mapping[str, Any]) -> Optional[str]:
    """Why generate(**sources, **settings) cannot run in fixed shapes; None if it can."""
    config = model.config
    if not getattr(config, "is_encoder_decoder", False):
        return f"{type(model).__name__} is no encoder-decoder; its prompt's length is part of the shape"
    main = getattr(model, "main_input_name", "input_ids")
    others = sorted(
        name for name, value in sources.items() if value is not None and name not in (main, "attention_mask")
    )
    if main not in sources:
        return f"the batch has no {main}"
    if others:
        return f"the batch has {', '.join(others)} beside {main} and attention_mask"
    used = [name for name in _OTHER_FORWARDS if settings.get(name)]
    if used:
        return f"{', '.join(used)} needs forward passes of other shapes"
    return None


def generate_on_device(
    run: DeviceRun, model: Any, sources: Mapping[str, Any], settings: Mapping[str, Any], micro_batch: int
) -> torch.Tensor:
    """model.generate(**sources, **settings) with its forward passes on the device: tokens (samples, length).

    micro_batch is the evaluation's; the last batch is filled up with copies that are thrown away. settings must say
    max_length or max_new_tokens.
    """
    main = getattr(model, "main_input_name", "input_ids")
    samples = sources[main].shape[0]
    per_call = micro_batch * run.inference_samples_per_call[0]
    rows = -(-samples // per_call) * per_call
    filled = {
        name: torch.cat([value, value[-1:].expand(rows - samples, *value.shape[1:])]) for name, value in sources.items()
    }
    length = int(settings.get("max_length") or int(settings["max_new_tokens"]) + 1)
    twin = _on_device(model, run, length)
    with torch.no_grad():
        tokens: torch.Tensor = twin.generate(**filled, **{**settings, "use_cache": False})
    returned = tokens.shape[0] // rows  # num_return_sequences
    return tokens[: samples * returned]


def _on_device(model: Any, run: DeviceRun, length: int) -> Any:
    """A stand-in for the model that generate() takes: the same configuration and methods, forward on the device."""
    twin = copy.copy(model)

    def forward(self: Any, *_: Any, **kwargs: Any) -> Seq2SeqLMOutput:
        return _scores(self, **kwargs)

    # generate() looks at it for names that it may pass, and refuses misspelt ones.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    twin.__class__ = type(type(model).__name__, (_DeviceForward, type(model)), {"forward": forward})
    twin.__dict__.update(run=run, length=length, _encoder_on_device=_EncoderOnDevice(run, model.main_input_name))
    return twin


class _EncoderOnDevice(nn.Module):
    run: DeviceRun

    def __init__(self, run: DeviceRun, main_input_name: str) -> None:
        super().__init__()
        self.__dict__["run"] = run
        self.main_input_name = main_input_name

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        names = (self.main_input_name, "attention_mask")
        given = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        hidden = self.run.infer(given, _encode, ("encoder of generation",))
        return BaseModelOutput(last_hidden_state=hidden)


class _DeviceForward:
    """Mixed in before the model's class."""

    run: DeviceRun
    length: int
    _encoder_on_device: _EncoderOnDevice

    device = torch.device("cpu")

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self._encoder_on_device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)  # type: ignore[attr-defined]


def _scores(
    twin: Any,
    decoder_input_ids: Optional[torch.Tensor] = None,
    encoder_outputs: Any = None,
    attention_mask: Optional[torch.Tensor] = None,
    **_: Any,
) -> Seq2SeqLMOutput:
    """One decoder call: logits of the last known position, (rows, 1, vocabulary)."""
    assert decoder_input_ids is not None
    rows, known = decoder_input_ids.shape
    padded = decoder_input_ids.new_zeros((rows, max(twin.length, known)))
    padded[:, :known] = decoder_input_ids
    given: Dict[str, Any] = {
        "decoder_input_ids": padded,
        "encoder_hidden_states": encoder_outputs[0].contiguous(),
        "position": torch.full((rows,), known - 1, dtype=torch.long),
    }
    if attention_mask is not None:
        given["attention_mask"] = attention_mask
    scores = twin.run.infer(given, _decode, ("decoder of generation",))
    return Seq2SeqLMOutput(logits=scores.float()[:, None, :])


def _encode(model: Any, given: Dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = model.get_encoder()(**given, return_dict=True).last_hidden_state
    return hidden


def _decode(model: Any, given: Dict[str, Any]) -> torch.Tensor:
    """Scores of the tokens after `position`, (rows, vocabulary)."""
    position, hidden = given.pop("position"), given.pop("encoder_hidden_states")
    outputs = model(**given, encoder_outputs=(hidden,), use_cache=False, return_dict=True)
    index = position.reshape(-1, 1, 1).expand(-1, 1, outputs.logits.shape[-1])
    scores: torch.Tensor = outputs.logits.gather(1, index)[:, 0]
    return scores
