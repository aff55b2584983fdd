"""Which accelerations and precision a run uses, each with its reason: by arguments, hardware and installed releases."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.torch_acceleration import COMPILED_CALL, has_cudnn_attention
from ipu_trainer.errors import UserError

COMPILES = ("auto", "layers", "model", "off")
KERNELS = ("auto", "on", "off")
_KERNELS_TUNED_FOR = (9, 0)  # compute capability
_CUDNN_WITH_ATTENTION = 90000  # version 9


@dataclass(frozen=True)
class Choice:
    name: str
    reason: str


def fused_kernels_package() -> Any:
    """The optional package fused_kernels, which nothing else imports; None where its folder is missing."""
    if importlib.util.find_spec("ipu_trainer.training.acceleration.fused_kernels") is None:
        return None
    from ipu_trainer.training.acceleration import fused_kernels

    return fused_kernels


def choose_compile(requested: str, device_type: str, num_gpus: int = 1) -> Choice:
    """ "layers", "model" or "off" for `--compile requested`. Raises UserError for layers where they cannot be compiled."""
    if requested not in COMPILES:
        raise UserError(f"compile {requested!r} is not one of {', '.join(COMPILES)}.")
    if requested in ("model", "off"):
        return Choice(requested, "asked for")
    missing = None
    if not hasattr(nn.Module, "compile"):
        missing = f"torch {torch.__version__} compiles no modules in place (2.2 does)"
    elif num_gpus > 1:
        missing = f"{num_gpus} GPUs of one process copy the model for each batch; start one process a GPU (torchrun)"
    elif (requested == "layers" or device_type == "cuda") and not COMPILED_CALL.is_known():
        missing = f"torch {torch.__version__} is newer than those that it was tried with"
    if requested == "layers":
        if missing:
            raise UserError(f"compile=layers: {missing}. Use --compile off.")
        return Choice("layers", "asked for")
    if device_type != "cuda":
        return Choice("off", "it pays on a GPU")
    return Choice("off", missing) if missing else Choice("layers", "on a GPU")


def choose_fused_kernels(requested: str, args: Any) -> Choice:
    """ "on" or "off" for `--gpu_kernels requested` with these training arguments.

    Raises UserError for "on" where the kernels cannot be used.
    """
    if requested not in KERNELS:
        raise UserError(f"gpu_kernels {requested!r} is not one of {', '.join(KERNELS)}.")
    if requested == "off":
        return Choice("off", "asked for")
    missing = _why_no_fused_kernels(args)
    if requested == "on" and missing:
        raise UserError(f"gpu_kernels=on: {missing}. Leave it at auto.")
    return Choice("off", missing) if missing else Choice("on", "tuned for this GPU")


def _why_no_fused_kernels(args: Any) -> Optional[str]:
    if fused_kernels_package() is None:
        return "the package ipu_trainer.training.acceleration.fused_kernels is not installed"
    if args.device.type != "cuda":
        return "they are for a GPU"
    compiled = choose_compile(args.compile, args.device.type, args.n_gpu).name
    if compiled != "layers":
        return f"they are for compiled layers, and compile is {compiled}"
    if not args.bf16:
        return "they are for bf16"
    if args.deepspeed or args.fsdp:
        return "they read a layer's weights, which DeepSpeed and FSDP shard"
    if not hasattr(torch.library, "triton_op") or not has_cudnn_attention():
        return f"torch {torch.__version__} has no Triton operators, or no cuDNN attention (2.6 has both)"
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
    """One line for a run's start: what is compiled, fused kernels and TF32, each with the reason."""
    if has_executors:
        return "compiled by poptorch"
    choice = choose_compile(args.compile, args.device.type, args.n_gpu)
    description = f"compile {choice.name} ({choice.reason})"
    if args.device.type == "cuda":
        package = fused_kernels_package()
        if package is not None and package.supported_modules(model):
            kernels = choose_fused_kernels(args.gpu_kernels, args)
            description += f", fused kernels {kernels.name} ({kernels.reason})"
        description += ", TF32 " + ("on (--tf32 false for float32 products)" if args.tf32 else "off")
    return description


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_precision(requested: str, use_cpu: bool) -> Choice:
    """ "bf16", "fp16" or "fp32" on the host for `--precision requested`. Raises UserError for another word."""
    if requested not in PRECISIONS:
        raise UserError(f"precision {requested!r} is not one of {', '.join(PRECISIONS)}.")
    if requested != "auto":
        return Choice(requested, "asked for")
    if not use_cpu and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return Choice("bf16", "the GPU has bfloat16 matrix units")
        return Choice("fp32", "the GPU has no bfloat16")
    return Choice("fp32", "a CPU computes in float32 unless --precision bf16 is given")


def settle_precision(args: Any, on_device: bool) -> None:
    """Set bf16, fp16 and half of these training arguments as their `precision` says; an empty one leaves them alone.

    bf16 and fp16 are autocast on the host, fp16 is half on a device. With auto, a flag that is set decides. Raises UserError
    for a precision that the backend does not have, and for a flag that contradicts it.
    """
    if not args.precision:
        return
    chosen = choose_precision(args.precision, bool(getattr(args, compat.field_name("use_cpu"))))
    if on_device and args.precision == "bf16":
        raise UserError("precision bf16 is for the host: IPUs have no bfloat16. Use --precision fp16 or fp32.")
    flags = {"half": "fp16"} if on_device else {"bf16": "bf16", "fp16": "fp16"}
    given = [name for name in flags if getattr(args, name)]
    for name in given:
        if args.precision not in ("auto", flags[name]):
            raise UserError(f"--precision {args.precision} and --{name} contradict each other. Give one of them.")
    if on_device:
        args.half = args.half or args.precision == "fp16"
    elif not given and chosen.name != "fp32":
        setattr(args, chosen.name, True)


def used_precision(args: Any, on_device: bool) -> Choice:
    """What a run with these arguments, which are settled, computes in."""
    requested = args.precision or "auto"
    if on_device:
        if args.half:
            return Choice("fp16", "asked for" if requested == "fp16" else "--half")
        return Choice("fp32", "a device computes in float32 unless --precision fp16 is given")
    chosen = choose_precision(requested, args.device.type == "cpu")
    used = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return chosen if chosen.name == used else Choice(used, f"--{used}")
