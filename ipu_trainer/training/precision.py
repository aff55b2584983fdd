"""float32 or bfloat16: chosen from what the device computes fast, and said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Precision:
    name: str
    reason: str


def choose_precision(requested: str, use_cpu: bool) -> Precision:
    """ "bf16" or "fp32" for `--precision requested`. Raises ValueError for another word, or bf16 where it cannot be."""
    if requested not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision {requested!r} is not one of auto, bf16, fp32.")
    if requested != "auto":
        return Precision(requested, "asked for")
    if not use_cpu and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return Precision("bf16", "the GPU has bfloat16 matrix units")
        return Precision("fp32", "the GPU has no bfloat16")
    if "amx_bf16" in _cpu_flags():
        return Precision("bf16", "the CPU has bfloat16 matrix units (AMX)")
    return Precision("fp32", "the CPU has no bfloat16 matrix units (AMX)")


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
