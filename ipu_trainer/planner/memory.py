"""Bytes on every IPU by purpose. Sums what may peak together, so it errs to the full side; see docs/planner.md."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Dict, Tuple

from ipu_trainer.machine.hardware import SRAM_BYTES_PER_IPU
from ipu_trainer.machine.liveness import stash_depths
from ipu_trainer.machine.schedule import pipelined_training
from ipu_trainer.planner.constants import DOES_NOT_FIT_ABOVE, FITS_BELOW, MEMORY, MemoryConstants
from ipu_trainer.planner.job import STATE_BYTES, Job
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
    shards = job.replicas if job.sharded_state else 1
    state = 0.0 if job.state_off_chip else STATE_BYTES[job.optimizer] / shards
    proportions = job.matmul_proportion if len(job.matmul_proportion) == num else job.matmul_proportion * num
    ipus = []
    for parts, depth, proportion in zip(job.placed(workload), depths(num), proportions):
        parameters = sum(part.parameters for part in parts)
        layers = [part for part in parts if part.kind == "layer"]
        batch = job.micro_batch
        work = [1.0 * batch * (part.saved_bytes - part.mask_bytes) for part in layers]
        # Beside what one layer keeps, the gradients of its products and probabilities, two bytes each.
        backward = [2.0 * batch * (part.linear_elements + part.softmax_elements) for part in layers]
        if job.recompute:
            kept = (0.5 if job.float8_stash else 1.0) * batch * sum(part.output_bytes for part in layers)
            stash, live = depth * kept, max(work, default=0.0)
        else:
            stash, live = depth * sum(work), sum(work)
        logits = sum(part.logit_elements for part in parts)
        ipus.append(
            {
                "weights": 2.0 * parameters,
                "gradients": 2.0 * parameters,
                "optimizer state": state * parameters,
                "stash": float(stash),
                "recomputation": live + max(backward, default=0.0),
                "head": 6.0 * batch * job.head_fraction * logits / job.head_serialization,
                # What the option bounds. An IPU without layers may hold embeddings and a head, whose products count in "head".
                "temporary": proportion * sram_bytes if any(part.flops for part in parts) else 0.0,
                "code": constants.code_bytes,
            }
        )
    return MemoryPrediction(tuple(ipus), sram_bytes)
