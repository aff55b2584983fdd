"""A training on the host with everything that makes it faster; the model is as before when the training ends."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

from torch import nn
from transformers.utils import logging

from ipu_trainer.errors import UserError
from ipu_trainer.training.acceleration.bfloat16_residual import bfloat16_residual_stream
from ipu_trainer.training.acceleration.choices import choose_compile, choose_fused_kernels, fused_kernels_package
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers
from ipu_trainer.training.acceleration.host_sync import deferred_padding_warning, skip_packing_check
from ipu_trainer.training.acceleration.loss_only_forward import reads_only_loss, skip_logits_upcast

logger = logging.get_logger(__name__)


@contextlib.contextmanager
def accelerated(model: nn.Module, args: Any) -> Iterator[None]:
    """Inside the block `model` has the compiled layers, fused kernels and bfloat16 residual stream that `args` choose.

    Raises UserError for an acceleration that `args` ask for and the model has no layers for.
    """
    requested = getattr(args, "compile", "off")
    choice = choose_compile(requested, args.device.type, args.n_gpu)
    logger.info("compile: %s (%s)", choice.name, choice.reason)
    with contextlib.ExitStack() as stack:
        if choice.name == "layers":
            stack.enter_context(_fused_layers(model, args))
        if getattr(args, "bf16_residual", False):
            stack.enter_context(bfloat16_residual_stream(model))
        if choice.name == "layers":
            stack.enter_context(compiled_layers(model, required=requested == "layers"))
        if args.n_gpu <= 1:  # DataParallel computes with other models at each step
            stack.enter_context(deferred_padding_warning())
        yield


@contextlib.contextmanager
def _fused_layers(model: nn.Module, args: Any) -> Iterator[None]:
    requested = getattr(args, "gpu_kernels", "off")
    choice = choose_fused_kernels(requested, args)
    with contextlib.ExitStack() as stack:
        count = 0
        if choice.name == "on":
            count = stack.enter_context(fused_kernels_package().fused_layers(model))
        if requested == "on" and not count:
            raise UserError(
                f"gpu_kernels=on: {type(model).__name__} has no layers that the fused kernels are for (those of ViT, DeiT, "
                "ViTMAE and ViTMSN in transformers 5). Leave it at auto."
            )
        logger.info("gpu_kernels: %s (%s), in %d modules", choice.name, choice.reason, count)
        yield


@contextlib.contextmanager
def loss_only_step(trainer: Any, model: nn.Module, inputs: Any) -> Iterator[None]:
    """Around a training step: where it reads only the loss, logits are not copied and rows are not checked for packing.

    A compute_loss of a subclass may give the model other inputs, and read other outputs: nothing is skipped for it.
    """
    with contextlib.ExitStack() as stack:
        if reads_only_loss(trainer, model):
            stack.enter_context(skip_packing_check(inputs))
            stack.enter_context(skip_logits_upcast())
        yield
