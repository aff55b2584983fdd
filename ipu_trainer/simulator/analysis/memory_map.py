"""Bytes on every IPU, by purpose, from measured stages and the pipeline's schedule.

What is counted: weights, gradients or their accumulator, optimizer state that is on the chip, the stash (activations
of micro-batches between forward and backward), activations of the current micro-batch, and recomputed activations. Not
counted, because only the SDK's compiler knows it: code, exchange buffers, temporary memory of vertices, padding, and the balance
over tiles. A model that fits here with little to spare may not fit the chip.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.machine.hardware import SRAM_BYTES_PER_IPU
from ipu_trainer.machine.liveness import stash_depths
from ipu_trainer.machine.schedule import Schedule
from ipu_trainer.simulator.analysis.stages import StageCost

PURPOSES = ("weights", "gradients", "optimizer state", "stash", "activations", "recomputation")
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class IpuMemory:
    """One IPU. bytes_by_purpose has every purpose; largest are the largest saved tensors, (bytes, description)."""

    ipu_id: int
    bytes_by_purpose: Dict[str, int]
    largest: Tuple[Tuple[int, str], ...]

    @property
    def peak_bytes(self) -> int:
        """The sum of all purposes, which coincide in the busiest cycle."""
        return sum(self.bytes_by_purpose.values())

    @property
    def fits(self) -> bool:
        """Whether the counted bytes are within the IPU's SRAM."""
        return self.peak_bytes <= SRAM_BYTES_PER_IPU


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """All IPUs of one replica."""

    ipus: Tuple[IpuMemory, ...]

    @property
    def fits(self) -> bool:
        """Whether every IPU fits."""
        return all(ipu.fits for ipu in self.ipus)

    def table(self) -> str:
        """MiB (KiB for small models) per IPU and purpose; then the IPUs that do not fit, with their largest tensors."""
        small = all(ipu.peak_bytes < _MIB for ipu in self.ipus)
        unit, name = (2**10, "KiB") if small else (_MIB, "MiB")
        header = [f"{name} on IPU", *PURPOSES, "peak", f"of {SRAM_BYTES_PER_IPU / _MIB:.0f} MiB"]
        rows = [header]
        for ipu in self.ipus:
            sizes = [ipu.bytes_by_purpose[purpose] for purpose in PURPOSES] + [ipu.peak_bytes]
            share = f"{100 * ipu.peak_bytes / SRAM_BYTES_PER_IPU:.1f} %"
            rows.append([str(ipu.ipu_id), *(f"{size / unit:.2f}" for size in sizes), share])
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
        for ipu in self.ipus:
            if not ipu.fits:
                named = ", ".join(f"{text} ({size / _MIB:.1f} MiB)" for size, text in ipu.largest) or "none"
                lines.append(
                    f"IPU {ipu.ipu_id} does not fit: {ipu.peak_bytes / _MIB:.0f} MiB. Largest activations: {named}. "
                    "Use more IPUs, recomputation, a smaller micro-batch, or optimizer state off the chip."
                )
        lines.append("Code, exchange buffers and temporary memory of the compiled program are not counted.")
        return "\n".join(lines)


def memory_report(
    stages: Sequence[StageCost],
    schedule: Schedule,
    training: bool,
    state_bytes_per_parameter: int,
    accumulator_bytes_per_parameter: int,
    recompute: bool,
) -> MemoryReport:
    """The report for one replica.

    schedule has one row per stage. state_bytes_per_parameter counts what is on the chip (8 for Adam in float32).
    With recompute a stage stashes its inputs and the checkpoints that the model marked, and recomputes the longest segment
    between them; without, it stashes all activations. Frozen parameters have neither gradient nor state.
    Raises ValueError if schedule and stages differ in length.
    """
    if schedule.num_ipus != len(stages):
        raise UserError(f"the schedule has {schedule.num_ipus} stages and the model {len(stages)}")
    depths = stash_depths(schedule) if training else (0,) * len(stages)
    totals: Dict[int, Dict[str, int]] = {}
    largest: Dict[int, List[Tuple[int, str]]] = {}
    for stage, depth in zip(stages, depths):
        use = totals.setdefault(stage.ipu_id, dict.fromkeys(PURPOSES, 0))
        largest.setdefault(stage.ipu_id, []).extend(stage.largest)
        use["weights"] += stage.parameter_bytes + stage.buffer_bytes
        if not training:
            continue
        use["gradients"] += stage.num_trained * accumulator_bytes_per_parameter
        use["optimizer state"] += stage.num_trained * state_bytes_per_parameter
        recomputes = recompute and depth > 0
        stashed = stage.input_bytes + stage.checkpoint_bytes if recomputes else stage.saved_bytes
        use["stash"] += depth * stashed
        if recomputes:  # stages on one IPU run one at a time
            use["recomputation"] = max(use["recomputation"], stage.segment_bytes)
        elif depth == 0:
            use["activations"] = max(use["activations"], stage.saved_bytes)
    return MemoryReport(
        tuple(
            IpuMemory(ipu_id, totals[ipu_id], tuple(sorted(largest[ipu_id], reverse=True)[:3]))
            for ipu_id in sorted(totals)
        )
    )
