"""What a run computes in: `precision` of the training arguments, settled into Trainer's bf16 and fp16 and a device's half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    name: str
    reason: str


def choose_precision(requested: str, use_cpu: bool) -> Precision:
    """ "bf16", "fp16" or "fp32" on the host for `--precision requested`. Raises UserError for another word."""
    if requested not in PRECISIONS:
        raise UserError(f"precision {requested!r} is not one of {', '.join(PRECISIONS)}.")
    if requested != "auto":
        return Precision(requested, "asked for")
    if not use_cpu and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return Precision("bf16", "the GPU has bfloat16 matrix units")
        return Precision("fp32", "the GPU has no bfloat16")
    return Precision("fp32", "a CPU computes in float32 unless --precision bf16 is given")


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


def used_precision(args: Any, on_device: bool) -> Precision:
    """What a run with these arguments, which are settled, computes in."""
    requested = args.precision or "auto"
    if on_device:
        if args.half:
            return Precision("fp16", "asked for" if requested == "fp16" else "--half")
        return Precision("fp32", "a device computes in float32 unless --precision fp16 is given")
    chosen = choose_precision(requested, args.device.type == "cpu")
    used = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return chosen if chosen.name == used else Precision(used, f"--{used}")
