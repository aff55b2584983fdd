"""What a training step does not read stays in the precision that the model gave it in.

Under autocast accelerate copies everything that a model returns to float32. Of a language model that is the logits of a whole
vocabulary: 3.3 GB for 16 rows of 1,024 tokens, of which Trainer then reads the loss.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

from accelerate.utils import operations
from torch import nn
from transformers import Trainer


def reads_loss_alone(trainer: Any, model: nn.Module) -> bool:
    """Whether a training step of `trainer` reads nothing but the loss of what `model` returns."""
    stock = getattr(trainer.compute_loss, "__func__", None) is Trainer.compute_loss
    own_loss = getattr(trainer, "compute_loss_func", None) is not None or trainer.label_smoother is not None
    keeps_past = getattr(trainer.args, "past_index", -1) >= 0  # transformers before 5
    return stock and not own_loss and not keeps_past and not model._forward_hooks and not trainer.model._forward_hooks


@contextlib.contextmanager
def loss_alone_in_float32() -> Iterator[None]:
    """Inside the block accelerate copies of a model's outputs the loss to float32, where there is one."""
    convert = operations.convert_to_fp32

    def convert_loss(outputs: Any) -> Any:
        if not isinstance(outputs, dict) or outputs.get("loss") is None:
            return convert(outputs)
        outputs["loss"] = convert(outputs["loss"])
        return outputs

    operations.convert_to_fp32 = convert_loss
    try:
        yield
    finally:
        operations.convert_to_fp32 = convert
