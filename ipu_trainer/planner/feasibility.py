"""Whether a configuration may run at all: for `train`, and for hyper-parameter search before it starts a trial."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Optional, Tuple

from ipu_trainer.config.ipu_config import IPUConfig, IPUConfigError
from ipu_trainer.errors import UserError
from ipu_trainer.machine.hardware import GC200, IPU, SYSTEMS, System
from ipu_trainer.planner.constants import MEMORY, MemoryConstants
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import DOES_NOT_FIT, FITS, MemoryPrediction, predict_memory
from ipu_trainer.planner.workload import Workload, measure


@dataclass(frozen=True)
class Finding:
    """Something that speaks against a configuration, as one sentence or more. prevents: it cannot run, rather than may not;
    is_memory: that is a prediction of memory, rather than a rule."""

    text: str
    prevents: bool
    is_memory: bool = False


@dataclass(frozen=True)
class Feasibility:
    """The predicted memory and what speaks against a configuration; no findings where it fits."""

    memory: MemoryPrediction
    findings: Tuple[Finding, ...]

    @property
    def band(self) -> str:
        """One of memory's three."""
        return self.memory.band

    @property
    def reasons(self) -> Tuple[str, ...]:
        return tuple(finding.text for finding in self.findings)

    @property
    def may_run(self) -> bool:
        """False where a rule is broken, or memory is predicted above the zone that the model cannot resolve."""
        return not any(finding.prevents for finding in self.findings)


def feasibility(
    config: IPUConfig,
    workload: Workload,
    system: System,
    micro_batch: int,
    optimizer: str = "adamw",
    constants: MemoryConstants = MEMORY,
) -> Feasibility:
    """Predict memory, and check IPUs and accumulation. Raises UserError where layers_per_ipu does not match the model."""
    job = Job.from_config(config, workload, micro_batch, optimizer)
    memory = predict_memory(workload, job, constants, system.ipu.sram_bytes)
    findings = []
    if job.num_ipus > system.num_ipus:
        text = f"{job.num_ipus} IPUs are more than the {system.num_ipus} of the system {system.name}. Lower replication_factor."
        findings.append(Finding(text, prevents=True))
    stages = job.num_stages(workload)
    if stages > 1 and job.accumulation < 2 * stages - 1:
        text = (
            f"gradient_accumulation_steps {job.accumulation} cannot fill the pipeline of {stages} stages. "
            f"Use {2 * stages - 1} or more."
        )
        findings.append(Finding(text, prevents=True))
    if memory.band != FITS:
        fullest = memory.shares.index(memory.share)
        largest = max(memory.ipus[fullest], key=lambda name: memory.ipus[fullest][name])
        verb = "is predicted not to fit" if memory.band == DOES_NOT_FIT else "may not fit"
        text = (
            f"IPU {fullest} {verb}: {memory.share:.2f} of its SRAM, mostly {largest}. Lower the micro-batch, spread the "
            "layers over more IPUs, or set optimizer_state_offchip."
        )
        findings.append(Finding(text, prevents=memory.band == DOES_NOT_FIT, is_memory=True))
    return Feasibility(memory, tuple(findings))


def why_not_feasible(
    model_or_config: Any,
    ipu_config: IPUConfig,
    micro_batch: int,
    *,
    task: Optional[str] = None,
    sequence_length: Optional[int] = None,
    target_length: Optional[int] = None,
    optimizer: str = "adamw",
    system: Optional[System] = None,
) -> Optional[str]:
    """Why a training cannot run on IPUs as configured, or None where it may. A prediction: borderline memory may run.

    model_or_config: a model of Transformers, its config, or a Workload that was measured before. task is one of
    constants.TASKS; without it the model's class, or the config's `architectures`, decides. sequence_length counts tokens,
    target_length a decoder's; both as measure() has them. float16 is assumed, as a device run with --precision fp16 has it.
    system: by default the smallest Pod of GC200 that has the IPUs. A model is measured once for each of its shapes.
    Made for hyper-parameter search: is_feasible=functools.partial(why_not_feasible, config, task="causal-lm").
    Raises UserError where the model cannot be measured; a setting that breaks a rule is a reason, not an error.
    """
    workload = workload_of(model_or_config, task, sequence_length, target_length)
    home = system or smallest_system(ipu_config.num_ipus)
    if home is None:
        largest = max(SYSTEMS.values(), key=lambda item: item.num_ipus)
        return f"{ipu_config.num_ipus} IPUs are more than the {largest.num_ipus} of the largest Pod. Lower replication_factor."
    try:
        answer = feasibility(ipu_config, workload, home, micro_batch, optimizer)
    except IPUConfigError as error:
        return str(error)
    return None if answer.may_run else " ".join(finding.text for finding in answer.findings if finding.prevents)


def smallest_system(num_ipus: int, ipu: IPU = GC200) -> Optional[System]:
    """The smallest Pod of that chip with num_ipus or more; None where there is none."""
    fitting = [item for item in SYSTEMS.values() if item.ipu == ipu and item.num_ipus >= num_ipus]
    return min(fitting, key=lambda item: item.num_ipus, default=None)


def workload_of(
    source: Any, task: Optional[str] = None, sequence_length: Optional[int] = None, target_length: Optional[int] = None
) -> Workload:
    """The workload of a model of Transformers, or of its config; measured once for each of its shapes. A Workload is itself."""
    if isinstance(source, Workload):
        if (task, sequence_length, target_length) != (None, None, None):
            raise UserError(
                f"task={task!r} and lengths {sequence_length}, {target_length} cannot change a workload that was measured: "
                "give them to measure(), or pass the model's config."
            )
        return source
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise UserError(
            f"{type(source).__name__} has no Transformers config to measure. Pass a model, a config or a Workload."
        )
    values = config.to_dict()
    if task is None and source is not config:
        values["architectures"] = [type(source).__name__]
    kind: Any = type(config)
    return _measured(kind, json.dumps(values, sort_keys=True, default=str), task, sequence_length, target_length)


@functools.lru_cache(maxsize=32)
def _measured(kind: Any, values: str, task: Optional[str], length: Optional[int], target: Optional[int]) -> Workload:
    return measure(kind.from_dict(json.loads(values)), task, length, target)
