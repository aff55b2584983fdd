"""Every way to run a workload on a system at one global batch: what breaks a rule or does not fit is dropped, with its reason.

The space, all of it: powers of two of IPUs a replica (IPUs are attached in powers of two; at most as many as layers, stem and
head can use) and of replicas, every contiguous placement of the layers, empty IPUs included, every micro-batch and accumulation
that make the global batch, recomputation from each layer or from each stage (an IPUConfig cannot turn it off in a pipeline; one
IPU has none), replicated tensor sharding, optimizer state on or off chip, and PROPORTIONS.

Placements are too many to list. Time depends on the slowest IPU and on the one with the most parameters, memory on the fullest, so
the fastest placement in a band is found exactly, by dynamic programming over (IPU, layers placed).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.machine.hardware import System
from ipu_trainer.planner.constants import DOES_NOT_FIT_ABOVE, FITS_BELOW, SHIPPED, Calibration
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.load import all_loads, bytes_by_purpose, cycles
from ipu_trainer.planner.memory import FITS, MemoryPrediction, depths, predict_memory
from ipu_trainer.planner.time import (
    TimePrediction,
    between_updates,
    predict_time,
    ramp_slots,
)
from ipu_trainer.planner.workload import Workload

# Matmul proportions that are tried. The model knows no cost of a small one in time, so none under those that were published.
PROPORTIONS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_CANNOT_FILL = "accumulation is under 2 x stages - 1: the pipeline cannot fill"
_DOES_NOT_FIT = f"does not fit (more than {DOES_NOT_FIT_ABOVE:.2f} of SRAM) in any placement"
_SLOWER = "another placement or matmul proportion is faster in the same band of memory"


@dataclass(frozen=True)
class Plan:
    """A job with its predictions. given: the IPUConfig that it was made from, if it was."""

    job: Job
    memory: MemoryPrediction
    time: TimePrediction
    given: Optional[IPUConfig] = None

    def to_config(self) -> IPUConfig:
        """The IPUConfig that runs it; the micro-batch is per_device_train_batch_size beside it."""
        if self.given is not None:
            return self.given
        proportion = self.job.matmul_proportion
        return IPUConfig(
            replication_factor=self.job.replicas,
            gradient_accumulation_steps=self.job.accumulation,
            device_iterations=self.job.device_iterations,
            layers_per_ipu=self.job.layers_per_ipu,
            ipus_per_replica=len(self.job.layers_per_ipu),
            optimizer_state_offchip=self.job.state_off_chip,
            replicated_tensor_sharding=self.job.sharded_state,
            matmul_proportion=proportion[0] if len(proportion) == 1 else proportion,
            recompute_checkpoint_every_layer=self.job.recompute and self.job.checkpoint_each_layer,
        )


@dataclass(frozen=True)
class SearchResult:
    """plans: those in "fits" first, each band by throughput. dropped: reason -> number of candidates.

    num_candidates counts the whole space, each placement on its own: the plans and all that was dropped.
    """

    plans: Tuple[Plan, ...]
    dropped: Dict[str, int]
    num_candidates: int


def search(
    workload: Workload,
    system: System,
    global_batch: int,
    optimizer: str = "adamw",
    device_iterations: int = 1,
    calibration: Calibration = SHIPPED,
) -> SearchResult:
    """The fastest of all candidates for each combination and band of memory.

    The global batch is exact. device_iterations are as given: they spread the host's time over more updates, and change how
    often a learning rate can. Of matmul proportions, which change memory alone here, the largest that keeps the band is kept.
    """
    for name, value in (("global_batch", global_batch), ("device_iterations", device_iterations)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1. Give {name}=1 or more.")
    dropped: Counter[str] = Counter()
    plans: List[Plan] = []
    total, num_layers = 0, len(workload.layers)
    for combination in combinations(workload, system, global_batch, optimizer, device_iterations):
        depth = len(combination.layers_per_ipu)
        size = num_placements(num_layers, depth) * len(PROPORTIONS)
        total += size
        if depth > 1 and combination.accumulation < 2 * _num_stages(workload, depth) - 1:
            dropped[_CANNOT_FILL] += size
        else:
            found = _fastest(workload, combination, system, calibration)
            plans += [
                Plan(
                    job,
                    predict_memory(workload, job, calibration.memory, system.ipu.sram_bytes),
                    predict_time(workload, job, system.ipu, calibration.time),
                )
                for job in found
            ]
            dropped[_SLOWER if found else _DOES_NOT_FIT] += size - len(found)
    plans.sort(key=lambda plan: (plan.memory.band != FITS, -plan.time.throughput, plan.memory.share))
    return SearchResult(tuple(plans), dict(dropped), total)


def combinations(
    workload: Workload, system: System, global_batch: int, optimizer: str = "adamw", device_iterations: int = 1
) -> Iterator[Job]:
    """The space without placements and matmul proportions: jobs whose layers_per_ipu only has the right length.

    At most two IPUs can be without layers and still have work: that of the stem and that of the head.
    """
    for depth in _powers_of_two(min(system.num_ipus, len(workload.layers) + 2)):
        modes = ((True, True), (True, False)) if depth > 1 else ((False, True),)
        for replicas in _powers_of_two(system.num_ipus // depth):
            if global_batch % replicas:
                continue
            for micro_batch in _divisors(global_batch // replicas):
                for (recompute, each_layer), sharded, off_chip in itertools.product(
                    modes, (False, True) if replicas > 1 else (False,), (False, True)
                ):
                    yield Job(
                        (0,) * depth,
                        micro_batch,
                        global_batch // replicas // micro_batch,
                        replicas,
                        device_iterations,
                        recompute,
                        sharded,
                        off_chip,
                        optimizer=optimizer,
                        checkpoint_each_layer=each_layer,
                    )


def placements(num_layers: int, depth: int) -> Iterator[Tuple[int, ...]]:
    """Every contiguous placement of the layers on depth IPUs, empty ones included."""
    for cuts in itertools.combinations(range(num_layers + depth - 1), depth - 1):
        edges = (-1, *cuts, num_layers + depth - 1)
        yield tuple(after - before - 1 for before, after in zip(edges, edges[1:]))


def num_placements(num_layers: int, depth: int) -> int:
    """How many `placements` there are."""
    return math.comb(num_layers + depth - 1, depth - 1)


def _num_stages(workload: Workload, depth: int) -> int:
    """Stages of a pipeline that uses all its IPUs."""
    inner, rest = min(depth - 1, len(workload.layers)), len(workload.layers)
    counts = [0] * depth
    for ipu in range(inner):
        counts[1 + ipu] = 1
    counts[min(1, depth - 1)] += rest - inner
    return Job(tuple(counts), 1, 1).num_stages(workload)


def _fastest(workload: Workload, job: Job, system: System, calibration: Calibration) -> List[Job]:
    """The fastest placement that fits, and the fastest in the borderline if that is faster still.

    Among placements that are equally fast the one with the emptiest fullest IPU, and of matmul proportions the largest.
    """
    depth, sram = len(job.layers_per_ipu), system.ipu.sram_bytes
    loads = all_loads(workload, depth)
    time = np.stack([cycles(load, job, calibration.time, workload.modality == "image") for load in loads])
    held = np.stack(
        [
            sum(bytes_by_purpose(load, job, stash, 0.0, sram, calibration.memory).values())
            for load, stash in zip(loads, depths(depth))
        ]
    )
    temporary = np.stack([sram * load.has_products for load in loads])
    count = len(workload.layers)
    possible = np.triu(np.ones((count + 1, count + 1), dtype=bool))
    # share[k, ipu, a, b] with the k-th proportion, the largest first.
    proportions = sorted(PROPORTIONS, reverse=True)
    share = np.where(possible, (held + np.array(proportions)[:, None, None, None] * temporary) / sram, np.inf)
    allowed = np.concatenate([share < FITS_BELOW, share <= DOES_NOT_FIT_ABOVE])
    weights = np.stack([load.parameters for load in loads])
    slots = (job.accumulation + ramp_slots(job)) / system.ipu.clock_hz

    def update_s(cycles_of_slowest: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        busy = slots * cycles_of_slowest
        return np.asarray(busy + sum(between_updates(busy, parameters, job, calibration.time)))

    seconds, slowest, heaviest = _least_cost(time, weights, allowed, update_s)
    in_time = allowed & (time <= _last(slowest) * (1 + 1e-12)) & (weights <= _last(heaviest))
    _, chosen = _least_maximum(np.where(in_time, np.concatenate([share, share]), np.inf))
    result: List[Job] = []
    fastest = math.inf
    for band in np.split(np.arange(len(seconds)), 2):
        best = int(band[np.argmin(seconds[band])])
        if seconds[best] < fastest:
            fastest = float(seconds[best])
            proportion = proportions[best % len(proportions)]
            result.append(
                dataclasses.replace(
                    job, layers_per_ipu=tuple(int(n) for n in chosen[best]), matmul_proportion=(proportion,)
                )
            )
    return result


def _least_cost(
    time: np.ndarray, weights: np.ndarray, allowed: np.ndarray, cost: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each k: the least cost(largest time, largest weight), and these two, over allowed placements.

    cost must grow with both. The weight is bounded ever tighter, the least time for a bound found exactly, until time alone,
    with no weight at all, costs more than the best.
    """
    num = len(allowed)
    bound = np.full(num, np.inf)
    best, slowest, heaviest = (np.full(num, np.inf) for _ in range(3))
    while True:
        open_to = np.where(allowed & (weights < _last(bound)), time, np.inf)
        least, _ = _least_maximum(open_to)
        # Of placements that are as fast, the one that weighs least.
        as_fast = np.isfinite(open_to) & (open_to <= _last(least) * (1 + 1e-12))
        weight, _ = _least_maximum(np.where(as_fast, weights, np.inf))
        found = np.isfinite(least)
        finite_least, finite_weight = np.where(found, least, 0.0), np.where(found, weight, 0.0)
        total = np.where(found, cost(finite_least, finite_weight), np.inf)
        better = total < best
        best, slowest, heaviest = (
            np.where(better, new, old) for new, old in ((total, best), (least, slowest), (weight, heaviest))
        )
        bound = np.where(found & (cost(finite_least, 0.0 * finite_weight) < best), weight, -np.inf)
        if not np.isfinite(bound).any():
            return best, slowest, heaviest


def _last(values: np.ndarray) -> np.ndarray:
    """(k,) as (k, 1, 1, 1)."""
    return values[:, None, None, None]


def _least_maximum(cost: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """cost[k, ipu, a, b] of layers a to b - 1 on an IPU -> the least possible maximum over IPUs for each k, and its counts."""
    num, depth, size, _ = cost.shape
    least, cuts = cost[:, 0, 0, :], []
    for ipu in range(1, depth):
        worst = np.maximum(least[:, :, None], cost[:, ipu])
        cuts.append(worst.argmin(axis=1))
        least = worst.min(axis=1)
    counts = np.zeros((num, depth), dtype=int)
    end = np.full(num, size - 1)
    for ipu in range(depth - 1, 0, -1):
        start = cuts[ipu - 1][np.arange(num), end]
        counts[:, ipu] = end - start
        end = start
    counts[:, 0] = end
    return least[:, -1], counts


def _powers_of_two(most: int) -> List[int]:
    return [2**exponent for exponent in range(most.bit_length())]


def _divisors(number: int) -> List[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
