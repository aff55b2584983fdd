"""Seconds of a host step, term by term. The slowest IPU sets the pace of the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

from ipu_trainer.machine.hardware import IPU, TILES_PER_IPU
from ipu_trainer.planner import constants as const
from ipu_trainer.planner.constants import FAMILIES, FLOP_PER_CYCLE, TIME, TimeConstants
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.workload import PartCost, Workload


@dataclass(frozen=True)
class TimePrediction:
    """Seconds of one host step by term; slots are seconds a micro-batch takes on each IPU. A prediction, not a result."""

    slots: Tuple[float, ...]
    compute_s: float
    bubble_s: float
    reduction_s: float
    state_s: float
    gateway_s: float
    host_s: float
    samples: int
    family: str
    spread: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.bubble_s + self.reduction_s + self.state_s + self.gateway_s + self.host_s

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.samples / self.step_s

    @property
    def interval(self) -> Tuple[float, float]:
        """What published throughputs of the family stayed within: the prediction divided and multiplied by spread."""
        return self.throughput / self.spread, self.throughput * self.spread


def predict_time(workload: Workload, job: Job, ipu: IPU, constants: TimeConstants = TIME) -> TimePrediction:
    """The time of a job on chips of one kind."""
    family = FAMILIES.get(workload.family, "unseen")
    placed = job.placed(workload)
    factor = constants.image_factor if workload.modality == "image" else 1.0
    slots = tuple(factor * sum(_cycles(p, job, constants) for p in parts) / ipu.clock_hz for parts in placed)
    slot, updates, ramp = max(slots), job.device_iterations, const.RAMP * (len(placed) - 1)
    parameters = max(sum(part.parameters for part in parts) for parts in placed)
    shards = job.replicas if job.sharded_state else 1
    reduction = 4 * parameters * (job.replicas - 1) / job.replicas / const.REDUCE_BYTES_PER_S
    state = 12 * parameters / shards / const.STATE_BYTES_PER_S if job.state_off_chip else 0.0
    gateway = constants.gateway_s * max(0.0, math.log2(job.replicas) - 3)
    return TimePrediction(
        slots,
        updates * job.accumulation * slot,
        updates * ramp * slot,
        updates * reduction,
        updates * state,
        updates * gateway,
        const.HOST_S_OWN_LOOP if job.own_loop else constants.host_s,
        job.global_batch * updates,
        family,
        constants.spread_of(family),
    )


def _cycles(part: PartCost, job: Job, constants: TimeConstants) -> float:
    """Cycles of one part for one micro-batch: forward, backward twice, and forward again where it is recomputed."""
    batch = job.micro_batch
    if part.kind == "stem":
        return 3 * batch * part.flops / (FLOP_PER_CYCLE * constants.efficiency)
    if part.kind != "layer":
        products = 3 * batch * job.head_fraction * part.flops / (FLOP_PER_CYCLE * constants.head_efficiency)
        return products + (constants.layer_cycles / 2 if part.flops else 0.0)
    passes = 4 if job.recompute else 3
    return (
        passes * batch * part.flops / (FLOP_PER_CYCLE * constants.efficiency)
        + constants.layer_cycles
        + passes
        * batch
        * (constants.linear_cycles * part.linear_elements + constants.softmax_cycles * part.softmax_elements)
        / TILES_PER_IPU
    )
