"""What the training arguments ask for to make a model faster, put into it for one training and taken out again."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

from torch import nn
from transformers.utils import logging

from ipu_trainer.training.acceleration.bfloat16_residual import bfloat16_residual_stream
from ipu_trainer.training.acceleration.choices import choose_compile, choose_kernels
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers
from ipu_trainer.training.acceleration.fused_kernels.rewrite import own_kernels
from ipu_trainer.training.acceleration.host_sync import padding_told_later, rows_not_packed
from ipu_trainer.training.acceleration.loss_only_forward import loss_alone_in_float32, reads_loss_alone

logger = logging.get_logger(__name__)


@contextlib.contextmanager
def accelerated_layers(model: nn.Module, args: Any) -> Iterator[None]:
    """Inside the block layers are compiled and kernels fused, as the arguments say."""
    wanted = getattr(args, "compile", "off")
    choice = choose_compile(wanted, args.device.type, args.n_gpu)
    with contextlib.ExitStack() as stack:
        if choice.name == "layers":  # first: what is compiled are the layers with fused kernels
            _put_in_kernels(model, args, stack)
        if getattr(args, "bf16_residual", False) and not stack.enter_context(bfloat16_residual_stream(model)):
            raise ValueError(
                f"bf16_residual: {type(model).__name__} has no repeated layers (a ModuleList of one class). Leave it off."
            )
        if choice.name == "layers":
            stack.enter_context(compiled_layers(model, required=wanted == "layers"))
        if args.n_gpu <= 1:  # DataParallel computes with other models at each step
            stack.enter_context(padding_told_later())
        logger.info("compile: %s (%s)", choice.name, choice.reason)
        yield


def _put_in_kernels(model: nn.Module, args: Any, stack: contextlib.ExitStack) -> None:
    requested = getattr(args, "gpu_kernels", "off")
    choice = choose_kernels(requested, args)
    count = stack.enter_context(own_kernels(model)) if choice.name == "on" else 0
    if requested == "on" and not count:
        raise ValueError(
            f"gpu_kernels=on: {type(model).__name__} has no layers that they are for (those of ViT, DeiT, ViTMAE and "
            "ViTMSN in transformers 5). Leave it at auto."
        )
    logger.info("gpu_kernels: %s (%s), in %d modules", choice.name, choice.reason, count)


@contextlib.contextmanager
def host_sync_skipped(trainer: Any, model: nn.Module, inputs: Any) -> Iterator[None]:
    """Around a training step that reads the loss alone: no packing check, and logits are not copied to float32.

    A compute_loss of a subclass may give the model other inputs, and read other outputs: nothing is skipped there.
    """
    with contextlib.ExitStack() as stack:
        if reads_loss_alone(trainer, model):
            stack.enter_context(rows_not_packed(inputs))
            stack.enter_context(loss_alone_in_float32())
        yield
