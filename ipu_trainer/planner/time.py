"""Seconds of a host step, term by term. The slowest IPU sets the pace of the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np

from ipu_trainer.machine.hardware import IPU
from ipu_trainer.planner import constants as const
from ipu_trainer.planner.constants import FAMILIES, TIME, TimeConstants
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.load import cycles, loads
from ipu_trainer.planner.workload import Workload


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
    placed = loads(workload, job.layers_per_ipu)
    image = workload.modality == "image"
    slots = tuple(cycles(load, job, constants, image) / ipu.clock_hz for load in placed)
    slot, updates, ramp = max(slots), job.device_iterations, ramp_slots(job)
    parameters = max(load.parameters for load in placed)
    reduction, state, gateway = between_updates((job.accumulation + ramp) * slot, parameters, job, constants)
    return TimePrediction(
        slots,
        updates * job.accumulation * slot,
        updates * ramp * slot,
        updates * float(reduction),
        updates * float(state),
        updates * float(gateway),
        const.HOST_S_OWN_LOOP if job.own_loop else constants.host_s,
        job.global_batch * updates,
        family,
        constants.spread_of(family),
    )


def ramp_slots(job: Job) -> float:
    """Slots of an update beside one for each micro-batch: the pipeline fills and drains."""
    return const.RAMP * (len(job.layers_per_ipu) - 1)


def between_updates(busy_s: Any, parameters: Any, job: Job, constants: TimeConstants) -> Tuple[Any, Any, Any]:
    """Seconds of an update for the reduction over replicas, optimizer state off the chip, and gateways. Numbers or arrays.

    busy_s is what the pipeline takes, parameters those of the IPU with most. Reduction, and gateways for each doubling of
    replicas, are taken to cost at most busy_s: more would say that replicas slow each other down, which no published row shows.
    """
    shards = job.replicas if job.sharded_state else 1
    reduction = np.minimum(parameters * 4 * (job.replicas - 1) / job.replicas / const.REDUCE_BYTES_PER_S, busy_s)
    state = parameters * 12 / shards / const.STATE_BYTES_PER_S if job.state_off_chip else 0.0 * parameters
    gateway = np.minimum(constants.gateway_s, busy_s) * max(0.0, math.log2(job.replicas) - 3)
    return reduction, state, gateway
