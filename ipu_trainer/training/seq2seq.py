"""Seq2SeqTrainer on an IPUConfig: generation on the host, or on a device in fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.utils import logging

from ipu_trainer.compat.transformers_training import generation_settings, padded_tokens
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.device.device_execution import DeviceExecution
from ipu_trainer.training.device.inference import generate_on_device, why_not_on_device
from ipu_trainer.training.trainer import IPUTrainer

logger = logging.get_logger(__name__)


@dataclass
class IPUSeq2SeqTrainingArguments(IPUTrainingArguments, Seq2SeqTrainingArguments):
    """IPUTrainingArguments, and Seq2SeqTrainingArguments' fields: predict_with_generate, generation_max_length, ..."""


class IPUSeq2SeqTrainer(IPUTrainer, Seq2SeqTrainer):  # type: ignore[misc]  # transformers is not typed
    """Takes everything that Seq2SeqTrainer takes, and `ipu_config`.

    evaluate() and predict() take ignore_keys, metric_key_prefix, max_length, num_beams and other gen_kwargs. On a device
    each step of the generation is one call of fixed shape, the decoder's input padded to its final length; where that
    cannot be (device/inference.py lists why) the host generates with the device's weights, and the log says so.
    """

    _host_generation_reason: Optional[str] = None

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: Optional[List[str]] = None,
        **gen_kwargs: Any,
    ) -> Any:
        if not self.execution.generates(model):
            return Seq2SeqTrainer.prediction_step(
                self, model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs
            )
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        given = dict(self.prepared_inputs(inputs))
        loss: Any = None
        labels = given.get("labels")
        if labels is not None:
            loss, _, _ = super().prediction_step(model, given, True, ignore_keys=ignore_keys)
        tokens = self._generate(given, gen_kwargs or generation_settings(self))
        if self.args.prediction_loss_only:
            return loss, None, None
        longest = max(tokens.shape[-1], _max_length(self.model))  # what Seq2SeqTrainer pads to
        if tokens.shape[-1] < longest:
            tokens = padded_tokens(self, tokens, longest)
        if labels is not None and labels.shape[-1] < longest:
            labels = padded_tokens(self, labels, longest)
        return loss, tokens, labels

    def _generate(self, given: Dict[str, Any], gen_kwargs: Dict[str, Any]) -> torch.Tensor:
        """Tokens of a batch, shape (samples, length)."""
        settings = {name: value for name, value in gen_kwargs.items() if value is not None and name != "synced_gpus"}
        if "max_new_tokens" not in settings:
            settings.setdefault("max_length", _max_length(self.model))
        # Labels (and decoder inputs made of them) would let it see the answer.
        sources = {k: v for k, v in given.items() if k not in ("labels", "decoder_input_ids", "decoder_attention_mask")}
        reason = why_not_on_device(self.model, sources, settings)
        if reason is None:
            assert isinstance(self.execution, DeviceExecution)
            micro_batch = self.execution.eval_micro_batch or 1
            return generate_on_device(self.execution.run, self.model, sources, settings, micro_batch)
        if reason != self._host_generation_reason:
            logger.warning("generating on the host: %s", reason)
            self._host_generation_reason = reason
        host: Any = self.model_on_host()
        tokens: torch.Tensor = host.generate(**sources, **settings)
        return tokens


def _max_length(model: Any) -> int:
    """The model's own setting, or what transformers takes without one, in tokens."""
    configured = getattr(getattr(model, "generation_config", None), "max_length", None)
    return int(configured or 20)
