"""float32 or bfloat16: bfloat16 on GPUs that have it, float32 on CPUs, alike on all of them, and said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ipu_trainer.backends import choose_backend


@dataclass(frozen=True)
class Precision:
    name: str
    reason: str


def choose_precision(requested: str, use_cpu: bool) -> Precision:
    """ "bf16" or "fp32" for `--precision requested`. Raises ValueError for another word."""
    if requested not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision {requested!r} is not one of auto, bf16, fp32.")
    if requested != "auto":
        return Precision(requested, "asked for")
    if not use_cpu and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return Precision("bf16", "the GPU has bfloat16 matrix units")
        return Precision("fp32", "the GPU has no bfloat16")
    return Precision("fp32", "a CPU computes in float32 unless --precision bf16 is given")


def used_precision(requested: str, args: Any) -> Precision:
    """What a run with these arguments computes in, `--precision requested` having been settled into them."""
    if args.half:
        return Precision("fp16", "--half")
    if choose_backend(args.backend, "", args.compile_only).has_executors:
        return Precision("fp32", "a device computes in float32 unless --half is given")
    chosen = choose_precision(requested, args.device.type == "cpu")
    used = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return chosen if chosen.name == used else Precision(used, f"--{used}")
