"""What makes a run fast: chosen from what is asked and from what computes, and told with the reason."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from ipu_trainer.errors import UserError
from ipu_trainer.training.acceleration.fused_kernels.rewrite import modules_with_kernels

COMPILES = ("auto", "layers", "model", "off")
KERNELS = ("auto", "on", "off")
_KERNELS_TUNED_FOR = (9, 0)  # compute capability
_CUDNN_WITH_ATTENTION = 90000  # version 9


@dataclass(frozen=True)
class Choice:
    name: str
    reason: str


def choose_compile(requested: str, device_type: str, num_gpus: int = 1) -> Choice:
    """ "layers", "model" or "off" for `--compile requested`. Raises ValueError for layers where they cannot be compiled."""
    if requested not in COMPILES:
        raise UserError(f"compile {requested!r} is not one of {', '.join(COMPILES)}.")
    missing = None
    if not hasattr(nn.Module, "compile"):
        missing = f"torch {torch.__version__} compiles no modules in place (2.2 does)"
    elif num_gpus > 1:
        missing = f"{num_gpus} GPUs of one process copy the model for each batch; start one process a GPU (torchrun)"
    if requested == "layers" and missing:
        raise UserError(f"compile=layers: {missing}. Use --compile off.")
    if requested != "auto":
        return Choice(requested, "asked for")
    if device_type != "cuda":
        return Choice("off", "it pays on a GPU")
    return Choice("off", missing) if missing else Choice("layers", "a GPU computes")


def choose_kernels(requested: str, args: Any) -> Choice:
    """ "on" or "off" for `--gpu_kernels requested` (kernels/) of these training arguments.

    Raises ValueError for "on" where it cannot be.
    """
    if requested not in KERNELS:
        raise UserError(f"gpu_kernels {requested!r} is not one of {', '.join(KERNELS)}.")
    if requested == "off":
        return Choice("off", "asked for")
    missing = _why_no_kernels(args)
    if requested == "on" and missing:
        raise UserError(f"gpu_kernels=on: {missing}. Leave it at auto.")
    return Choice("off", missing) if missing else Choice("on", "made for this GPU")


def _why_no_kernels(args: Any) -> Optional[str]:
    if args.device.type != "cuda":
        return "they are for a GPU"
    compiled = choose_compile(args.compile, args.device.type, args.n_gpu).name
    if compiled != "layers":
        return f"they are for compiled layers, and compile is {compiled}"
    if not args.bf16:
        return "they are for bf16"
    if args.deepspeed or args.fsdp:
        return "they read a layer's weights, and DeepSpeed and FSDP keep those in parts"
    if not hasattr(torch.library, "triton_op") or not hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention"):
        return f"torch {torch.__version__} has no operations made of Triton kernels, or no attention of cuDNN (2.6 has both)"
    enabled: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    cudnn: Optional[int] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if not enabled or (cudnn or 0) < _CUDNN_WITH_ATTENTION:
        return "cuDNN's attention is switched off, or there is no cuDNN 9"
    capability = torch.cuda.get_device_capability(args.device)
    if capability != _KERNELS_TUNED_FOR:
        major, minor = capability
        return f"they were tuned on an H100 (compute capability 9.0), and this GPU has {major}.{minor}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def describe_acceleration(args: Any, has_executors: bool, model: nn.Module) -> str:
    """One line for a run's beginning: what is compiled and in which arithmetic the float32 products are, with reasons."""
    if has_executors:
        return "compiled by poptorch"
    choice = choose_compile(args.compile, args.device.type, args.n_gpu)
    told = f"compile {choice.name} ({choice.reason})"
    if args.device.type == "cuda":
        if modules_with_kernels(model):
            kernels = choose_kernels(args.gpu_kernels, args)
            told += f", kernels for ViT {kernels.name} ({kernels.reason})"
        told += ", TF32 " + ("on (--tf32 false for float32 products)" if args.tf32 else "off")
    return told
