"""Logits of a training step that only reads the loss, without their upcast.

Under autocast accelerate copies everything that a model returns to float32. Of a language model that is the logits over a whole
vocabulary: 3.3 GB for 16 rows of 1,024 tokens, of which Trainer then reads the loss.
"""

from __future__ import annotations

from typing import Any, ContextManager

from torch import nn
from transformers import Trainer

from ipu_trainer.compat.accelerate_internals import float32_outputs
from ipu_trainer.compat.torch_acceleration import forward_hooks


def reads_only_loss(trainer: Any, model: nn.Module) -> bool:
    """Whether a training step of `trainer` reads nothing but the loss of what `model` returns."""
    stock = getattr(trainer.compute_loss, "__func__", None) is Trainer.compute_loss
    own_loss = getattr(trainer, "compute_loss_func", None) is not None or trainer.label_smoother is not None
    keeps_past = getattr(trainer.args, "past_index", -1) >= 0  # transformers before 5
    return stock and not own_loss and not keeps_past and not forward_hooks(model) and not forward_hooks(trainer.model)


def skip_logits_upcast() -> ContextManager[None]:
    """Inside the block accelerate copies only the loss to float32, where a model returns one."""

    def make(convert: Any) -> Any:
        def convert_loss(outputs: Any) -> Any:
            if not isinstance(outputs, dict) or outputs.get("loss") is None:
                return convert(outputs)
            outputs["loss"] = convert(outputs["loss"])
            return outputs

        return convert_loss

    return float32_outputs(make)
