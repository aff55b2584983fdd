"""Whether a configuration may run at all: for `train`, and for hyper-parameter search before it starts a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.machine.hardware import System
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import BORDERLINE, DOES_NOT_FIT, FITS, MemoryPrediction, predict_memory
from ipu_trainer.planner.workload import Workload


@dataclass(frozen=True)
class Feasibility:
    """band is one of memory's three; reasons are empty where it fits. may_run is False only above the unresolved zone."""

    band: str
    memory: MemoryPrediction
    reasons: Tuple[str, ...]

    @property
    def may_run(self) -> bool:
        return self.band != DOES_NOT_FIT and not any("system" in reason or "fill" in reason for reason in self.reasons)


def feasibility(
    config: IPUConfig, workload: Workload, system: System, micro_batch: int, optimizer: str = "adamw"
) -> Feasibility:
    """Predict memory, and check IPUs and accumulation. Raises ValueError where layers_per_ipu does not match the model."""
    job = Job.from_config(config, workload, micro_batch, optimizer)
    memory = predict_memory(workload, job, sram_bytes=system.ipu.sram_bytes)
    reasons = []
    if job.num_ipus > system.num_ipus:
        reasons.append(
            f"{job.num_ipus} IPUs are more than the {system.num_ipus} of the system {system.name}. Lower replication_factor."
        )
    needed = 2 * job.num_stages(workload) - 1
    if len(job.layers_per_ipu) > 1 and job.accumulation < needed:
        reasons.append(
            f"gradient_accumulation_steps {job.accumulation} cannot fill the pipeline. Use {needed} or more."
        )
    if memory.band != FITS:
        fullest = memory.shares.index(memory.share)
        largest = max(memory.ipus[fullest], key=lambda name: memory.ipus[fullest][name])
        verb = "is predicted not to fit" if memory.band == DOES_NOT_FIT else "may not fit"
        assert memory.band in (BORDERLINE, DOES_NOT_FIT)
        reasons.append(
            f"IPU {fullest} {verb}: {memory.share:.2f} of its SRAM, mostly {largest}. Lower the micro-batch, spread the "
            "layers over more IPUs, or set optimizer_state_offchip."
        )
    return Feasibility(memory.band, memory, tuple(reasons))
