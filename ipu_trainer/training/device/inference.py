"""Evaluation and generation on a device with fixed shapes.

Evaluation counts each sample once: it is what Trainer's prediction_step has, in pieces. Generation is Hugging Face's generate() on
the host, each forward one device call of a fixed shape:

    encoder   once a batch: (rows, source length)           -> hidden states
    decoder   once a token: (rows x beams, final length)    -> scores of one position, (rows x beams, vocabulary)

A causal decoder's scores at a position do not depend on what stands after it, so its input can be padded to the final length
and every call has the shape of the first: nothing is compiled twice. Beam search, sampling and logits processors stay
what transformers makes of them, since they run in generate() itself. There is no cache of keys and values: its shape grows.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.trainer_pt_utils import nested_concat

from ipu_trainer.training.device.executors import DeviceRun
from ipu_trainer.training.device.host_step import has_rows, num_samples

# (loss or None, logits or None) of one micro-batch.
Prediction = Callable[[nn.Module, Dict[str, Any]], Tuple[Any, Any]]


def predict_in_micro_batches(
    run: DeviceRun,
    predict_micro_batch: Prediction,
    given: Dict[str, Any],
    micro_batch: int,
    key: Tuple[Any, ...],
    has_loss: bool,
    has_logits: bool,
) -> Tuple[Any, Any]:
    """(mean loss over samples or None, joined logits or None) of a batch of any size.

    Whole micro-batches run on the device; the last call is filled up with copies of its last micro-batch, which are dropped.
    Samples that do not fill a micro-batch run on the host, so that no padding enters their mean. key: of the compiled executor.
    has_loss, has_logits: what predict_micro_batch returns, the other is None.
    """
    per_call = micro_batch * run.inference_samples_per_call[0]
    samples = num_samples(given)

    def on_device(inner: nn.Module, part: Dict[str, Any]) -> Any:
        both = predict_micro_batch(inner, part)
        return tuple(value for value in both if value is not None)

    losses: List[Tuple[Any, int]] = []
    logits: Any = None
    whole = samples - samples % micro_batch
    for start in range(0, whole, per_call):
        count = min(per_call, whole - start)
        outputs = run.infer(_filled(given, start, count, per_call, micro_batch), on_device, key)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        if has_loss:
            losses += [(value, micro_batch) for value in outputs[0].reshape(-1)[: count // micro_batch].float()]
        if has_logits:
            logits = _joined(logits, _rows(outputs[-1], count))
    if whole < samples:
        tail = {name: value[whole:] if has_rows(value, samples) else value for name, value in given.items()}
        loss, part = predict_micro_batch(run.on_host().eval(), tail)  # the loop put DeviceModel alone into evaluation
        if has_loss:
            losses.append((loss.float(), samples - whole))
        if has_logits:
            logits = _joined(logits, part if logits is None else _as_stored(part, logits))
    total = sum(value * count for value, count in losses) / samples if losses else None
    return total, logits


def _joined(before: Any, part: Any) -> Any:
    return part if before is None else nested_concat(before, part, padding_index=-100)


def _filled(given: Dict[str, Any], start: int, count: int, per_call: int, micro_batch: int) -> Dict[str, Any]:
    """Rows start to start + count of every tensor, filled up to per_call with copies of the last micro-batch."""

    def fill(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dim():
            return value
        rows = value[start : start + count]
        copies = (per_call - count) // micro_batch
        return torch.cat([rows, *[rows[-micro_batch:]] * copies]) if copies else rows

    return {name: fill(value) for name, value in given.items()}


def _as_stored(outputs: Any, like: Any) -> Any:
    """Floats of the host in the type that the device returns."""
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_as_stored(value, other) for value, other in zip(outputs, like))
    if isinstance(outputs, dict):
        return {name: _as_stored(value, like[name]) for name, value in outputs.items()}
    return outputs.to(like.dtype) if isinstance(outputs, torch.Tensor) else outputs


def _rows(outputs: Any, count: int) -> Any:
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_rows(value, count) for value in outputs)
    if isinstance(outputs, dict):
        return {name: _rows(value, count) for name, value in outputs.items()}
    return outputs[:count] if isinstance(outputs, torch.Tensor) else outputs


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
