"""Evaluation on a device with fixed shapes, each sample counted once: what Trainer's prediction_step has, in pieces."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import nn
from transformers.trainer_pt_utils import nested_concat

from ipu_trainer.training.device.executors import DeviceRun
from ipu_trainer.training.device.host_step import has_rows, num_samples

# (loss or None, logits or None) of one micro-batch.
Prediction = Callable[[nn.Module, Dict[str, Any]], Tuple[Any, Any]]


def predict_in_pieces(
    run: DeviceRun,
    of_micro_batch: Prediction,
    given: Dict[str, Any],
    micro_batch: int,
    key: Tuple[Any, ...],
    has_loss: bool,
    has_logits: bool,
) -> Tuple[Any, Any]:
    """Mean loss and joined logits of a batch of any size; None for what of_micro_batch does not have.

    Whole micro-batches run on the device, the last call filled up with copies that are thrown away; samples that do
    not fill a micro-batch run on the host, where no padding changes their mean. key names the function that is
    compiled.
    """
    per_call = micro_batch * run.inference_samples_per_call[0]
    samples = num_samples(given)

    def on_device(inner: nn.Module, part: Dict[str, Any]) -> Any:
        both = of_micro_batch(inner, part)
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
        loss, part = of_micro_batch(run.on_host(), tail)
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
