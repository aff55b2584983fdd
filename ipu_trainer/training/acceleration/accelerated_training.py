"""A training on the host with everything that makes it faster; the model is as before when the training ends."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Dict, Iterator, Tuple

import torch
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from ipu_trainer.compat.accelerate_internals import float32_outputs
from ipu_trainer.compat.torch_acceleration import forward_hooks
from ipu_trainer.errors import UserError
from ipu_trainer.training.acceleration.choices import choose_compile, choose_fused_kernels, fused_kernels_package
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers
from ipu_trainer.training.acceleration.host_sync import deferred_padding_warning, skip_packing_check
from ipu_trainer.training.layers import layer_stacks

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


@contextlib.contextmanager
def bfloat16_residual_stream(model: nn.Module) -> Iterator[int]:
    """Inside the block, while training under autocast, the first layer of each stack reads bfloat16; yields how many stacks.

    Evaluation is not affected. Raises UserError for a model without repeated layers.
    """
    firsts = [layers[0] for _, layers in layer_stacks(model)]
    if not firsts:
        raise UserError(
            f"bf16_residual: {type(model).__name__} has no repeated layers (a ModuleList of one class). Leave it off."
        )
    handles = [layer.register_forward_pre_hook(_hidden_in_bfloat16, with_kwargs=True) for layer in firsts]
    try:
        yield len(firsts)
    finally:
        for handle in handles:
            handle.remove()


def _hidden_in_bfloat16(layer: nn.Module, given: Tuple[Any, ...], named: Dict[str, Any]) -> Any:
    if not layer.training:
        return None
    if given:
        return (_rounded(given[0]), *given[1:]), named
    return given, {**named, "hidden_states": _rounded(named["hidden_states"])}


def _rounded(hidden: torch.Tensor) -> torch.Tensor:
    on_gpu = hidden.device.type == "cuda"
    autocast = torch.is_autocast_enabled() if on_gpu else torch.is_autocast_cpu_enabled()
    return hidden.to(torch.bfloat16) if autocast and hidden.dtype == torch.float32 else hidden


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
