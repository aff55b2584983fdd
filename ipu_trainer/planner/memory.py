"""Bytes on every IPU by purpose, and the three bands; see docs/planner.md."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Dict, Tuple

from ipu_trainer.machine.hardware import SRAM_BYTES_PER_IPU
from ipu_trainer.machine.liveness import stash_depths
from ipu_trainer.machine.schedule import pipelined_training
from ipu_trainer.planner.constants import DOES_NOT_FIT_ABOVE, FITS_BELOW, MEMORY, MemoryConstants
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.load import bytes_by_purpose, loads
from ipu_trainer.planner.workload import Workload

PURPOSES = ("weights", "gradients", "optimizer state", "stash", "recomputation", "head", "temporary", "code")
FITS, BORDERLINE, DOES_NOT_FIT = "fits", "borderline", "does not fit"


@dataclass(frozen=True)
class MemoryPrediction:
    """One replica. ipus[i] has bytes for every purpose; share is the fullest IPU's part of its SRAM."""

    ipus: Tuple[Dict[str, float], ...]
    sram_bytes: int

    @property
    def shares(self) -> Tuple[float, ...]:
        return tuple(sum(ipu.values()) / self.sram_bytes for ipu in self.ipus)

    @property
    def share(self) -> float:
        return max(self.shares)

    @property
    def band(self) -> str:
        if self.share < FITS_BELOW:
            return FITS
        return DOES_NOT_FIT if self.share > DOES_NOT_FIT_ABOVE else BORDERLINE


@functools.lru_cache(maxsize=None)
def depths(num_ipus: int) -> Tuple[int, ...]:
    """Stash depths of a full pipeline, from the schedule that the simulator runs too."""
    return stash_depths(pipelined_training(num_ipus, 2 * num_ipus - 1)) if num_ipus > 1 else (0,)


def predict_memory(
    workload: Workload, job: Job, constants: MemoryConstants = MEMORY, sram_bytes: int = SRAM_BYTES_PER_IPU
) -> MemoryPrediction:
    """The bytes of a job on IPUs with sram_bytes each."""
    num = len(job.layers_per_ipu)
    proportions = job.matmul_proportion if len(job.matmul_proportion) == num else job.matmul_proportion * num
    ipus = tuple(
        bytes_by_purpose(load, job, depth, proportion, sram_bytes, constants)
        for load, depth, proportion in zip(loads(workload, job.layers_per_ipu), depths(num), proportions)
    )
    return MemoryPrediction(ipus, sram_bytes)
