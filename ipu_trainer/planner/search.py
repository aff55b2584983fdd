"""Every way to run a workload on a system at one global batch: what breaks a rule or does not fit is dropped, with its reason."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.machine.hardware import System
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import DOES_NOT_FIT, FITS, MemoryPrediction, predict_memory
from ipu_trainer.planner.time import TimePrediction, predict_time
from ipu_trainer.planner.workload import Workload

_DEPTHS = (1, 2, 4, 8, 16)
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
_PROPORTIONS = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Plan:
    """A job with its predictions."""

    job: Job
    memory: MemoryPrediction
    time: TimePrediction

    def to_config(self) -> IPUConfig:
        """The IPUConfig that runs it; the micro-batch is per_device_train_batch_size beside it."""
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
            # With a checkpoint after each layer one layer at a time is made again, which the memory model counts on.
            recompute_checkpoint_every_layer=self.job.recompute,
        )


@dataclass(frozen=True)
class SearchResult:
    """plans: all that may fit, those in "fits" first, each band by throughput. dropped: reason -> number of candidates."""

    plans: Tuple[Plan, ...]
    dropped: Dict[str, int]
    num_candidates: int


def search(workload: Workload, system: System, global_batch: int, optimizer: str = "adamw") -> SearchResult:
    """All combinations of depth, placement, replicas, micro-batch, recomputation, sharding, state's place and matmul proportion.

    The global batch is exact: what does not divide it is dropped. Of matmul proportions, which change memory alone here, the
    largest that keeps the band is kept.
    """
    if global_batch < 1:
        raise ValueError(f"global_batch {global_batch} must be at least 1. Give the samples of one weight update.")
    dropped: Counter[str] = Counter()
    plans: List[Plan] = []
    total = 0
    for job, reason in _candidates(workload, system, global_batch, optimizer):
        total += 1
        if reason or job is None:
            dropped[reason or ""] += 1
            continue
        memory = predict_memory(workload, job, sram_bytes=system.ipu.sram_bytes)
        if memory.band == DOES_NOT_FIT:
            fullest = memory.shares.index(memory.share)
            largest = max(memory.ipus[fullest], key=lambda name: memory.ipus[fullest][name])
            dropped[f"does not fit (more than 1.10 of SRAM), mostly {largest}"] += 1
            continue
        plans.append(Plan(job, memory, predict_time(workload, job, system.ipu)))
    plans.sort(key=lambda plan: (plan.memory.band != FITS, -plan.time.throughput, -plan.job.matmul_proportion[0]))
    seen, kept = set(), []
    for plan in plans:
        job = plan.job
        key = (job.layers_per_ipu, job.replicas, job.micro_batch, job.recompute, job.sharded_state, job.state_off_chip)
        if key not in seen:
            seen.add(key)
            kept.append(plan)
    return SearchResult(tuple(kept), dict(dropped), total)


def _candidates(
    workload: Workload, system: System, batch: int, optimizer: str
) -> Iterator[Tuple[Optional[Job], Optional[str]]]:
    for depth in (d for d in _DEPTHS if d <= system.num_ipus):
        if depth > len(workload.layers):
            yield None, f"{depth} IPUs are more than the {len(workload.layers)} layers"
            continue
        replica_counts = [r for r in (2**n for n in range(9)) if r * depth <= system.num_ipus]
        for layers, replicas, micro_batch in itertools.product(
            placements(workload, depth), replica_counts, _MICRO_BATCHES
        ):
            if batch % (replicas * micro_batch):
                yield None, "micro-batch x replicas does not divide the global batch"
                continue
            accumulation = batch // (replicas * micro_batch)
            stages = Job(layers, 1, 1).num_stages(workload)
            if stages > 1 and accumulation < 2 * stages - 1:
                yield None, "accumulation is under 2 x stages - 1: the pipeline cannot fill"
                continue
            for recompute, off_chip, sharded, proportion in itertools.product(
                (True, False), (False, True), (False, True), _PROPORTIONS
            ):
                if sharded and replicas == 1:
                    yield None, "replicated tensor sharding with one replica"
                elif recompute and depth == 1:
                    yield None, "one IPU has no pipeline stash to save by recomputation"
                elif not recompute and depth > 1:
                    yield None, "an IPUConfig has no field that turns recomputation of a pipeline off"
                else:
                    yield (
                        Job(
                            layers,
                            micro_batch,
                            accumulation,
                            replicas,
                            1,
                            recompute,
                            sharded,
                            off_chip,
                            (proportion,),
                            optimizer,
                        ),
                        None,
                    )


def placements(workload: Workload, depth: int) -> Tuple[Tuple[int, ...], ...]:
    """Ways to spread the layers: even with the remainder late, and with 0 to all of an even share taken off IPU 0 or the last."""
    count = len(workload.layers)
    if depth == 1:
        return ((count,),)
    found: List[Tuple[int, ...]] = []
    for first in range(count // depth + 1):
        for last in range(count // depth + 2):
            middle = depth - 2
            rest = count - first - last
            if middle == 0:
                found += [(first, count - first)]
            elif rest >= 0:
                share, more = divmod(rest, middle)
                found.append((first, *[share] * (middle - more), *[share + 1] * more, last))
        share, more = divmod(count - first, depth - 1)
        found.append((first, *[share] * (depth - 1 - more), *[share + 1] * more))
    return tuple(dict.fromkeys(item for item in found if max(item) <= -(-count // depth) + 2))
