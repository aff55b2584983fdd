"""Batch arithmetic: from micro-batch, accumulation, replicas and device iterations to steps and samples of an epoch.

Trainer, samplers, planner and simulator all use these functions, so that they agree.

    global batch          = micro-batch x gradient accumulation x replicas      one weight update
    samples per host step = global batch x device iterations                    one call of the device
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError

TAILS = ("drop", "pad", "partial")


@dataclass(frozen=True)
class BatchGeometry:
    """How samples are grouped: all counts are whole numbers of at least 1."""

    micro_batch: int
    gradient_accumulation: int = 1
    replicas: int = 1
    device_iterations: int = 1

    def __post_init__(self) -> None:
        for name in ("micro_batch", "gradient_accumulation", "replicas", "device_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} {value!r} must be a whole number of at least 1. Use {name}=1 or more.")

    @classmethod
    def from_config(cls, config: IPUConfig, micro_batch: int) -> BatchGeometry:
        return cls(micro_batch, config.gradient_accumulation_steps, config.replication_factor, config.device_iterations)

    @property
    def global_batch(self) -> int:
        """Samples of one weight update."""
        return self.micro_batch * self.gradient_accumulation * self.replicas

    @property
    def samples_per_host_step(self) -> int:
        return self.global_batch * self.device_iterations

    def accumulation_per_process(self, num_processes: int) -> int:
        """Micro-batches that each of num_processes computes for one weight update, replicas spread over them.

        Raises UserError where the replicas cannot be shared out equally.
        """
        if num_processes < 1 or self.replicas % num_processes:
            possible = [count for count in range(1, self.replicas + 1) if self.replicas % count == 0]
            raise UserError(
                f"{self.replicas} replicas cannot be spread over {num_processes} processes: each must hold the same "
                f"number. Start one of {possible} processes, or set replication_factor to a multiple of {num_processes}."
            )
        return self.gradient_accumulation * self.replicas // num_processes

    def epoch(self, num_samples: int, tail: str = "drop") -> EpochPlan:
        """The steps and samples of one pass over num_samples samples.

        tail: the treatment of samples that do not fill a host step. "drop" omits them (static shapes), "pad" fills the step
        with repeated samples, "partial" runs fewer and smaller micro-batches, which only the host can.

        Raises UserError where an epoch would be empty.
        """
        if tail not in TAILS:
            raise UserError(f"tail {tail!r} is not one of {', '.join(TAILS)}.")
        if num_samples < 1:
            raise UserError(f"{num_samples} samples make no epoch. Give a data set with at least one sample.")
        step = self.samples_per_host_step
        if tail == "drop":
            host_steps = num_samples // step
            if not host_steps:
                raise UserError(
                    f"{num_samples} samples are fewer than the {step} of one host step ({self.describe()}), so every "
                    f"epoch would be empty. Lower {self._largest_factor()}, or pad the last step."
                )
            used = host_steps * step
            return EpochPlan(num_samples, host_steps, host_steps * self.device_iterations, used, num_samples - used, 0)
        host_steps = math.ceil(num_samples / step)
        padded = host_steps * step - num_samples if tail == "pad" else 0
        updates = host_steps * self.device_iterations if tail == "pad" else math.ceil(num_samples / self.global_batch)
        return EpochPlan(num_samples, host_steps, updates, num_samples, 0, padded)

    def describe(self) -> str:
        return (
            f"micro-batch {self.micro_batch} x accumulation {self.gradient_accumulation} x replicas {self.replicas} x "
            f"device iterations {self.device_iterations}"
        )

    def _largest_factor(self) -> str:
        factors = {
            "device_iterations": self.device_iterations,
            "gradient_accumulation_steps": self.gradient_accumulation,
            "replication_factor": self.replicas,
            "per_device_train_batch_size": self.micro_batch,
        }
        return max(factors, key=lambda name: factors[name])


@dataclass(frozen=True)
class EpochPlan:
    """One pass over a data set. samples_used counts each sample once; padding repeats samples_padded of them."""

    num_samples: int
    host_steps: int
    weight_updates: int
    samples_used: int
    samples_dropped: int
    samples_padded: int


def batch_table(geometry: BatchGeometry, epoch: Optional[EpochPlan] = None, num_processes: int = 1) -> str:
    """The table that every run prints before it starts."""
    rows: List[Tuple[str, int, str]] = [
        ("micro-batch", geometry.micro_batch, "samples in one forward pass of one replica"),
        ("gradient accumulation", geometry.gradient_accumulation, "micro-batches per weight update and replica"),
        ("replicas", geometry.replicas, f"over {num_processes} process{'es' if num_processes > 1 else ''}"),
        ("device iterations", geometry.device_iterations, "weight updates per host step"),
        ("global batch", geometry.global_batch, "samples per weight update"),
        ("samples per host step", geometry.samples_per_host_step, "global batch x device iterations"),
    ]
    if epoch is not None:
        rows += [
            ("samples", epoch.num_samples, "in the training set"),
            ("host steps per epoch", epoch.host_steps, ""),
            ("weight updates per epoch", epoch.weight_updates, ""),
            ("samples dropped", epoch.samples_dropped, "per epoch, other ones each time when shuffled"),
            ("samples padded", epoch.samples_padded, "repeated per epoch to fill the last host step"),
        ]
    name_width, value_width = max(len(row[0]) for row in rows), max(len(f"{row[1]:,}") for row in rows)
    return "\n".join(f"{name:<{name_width}}  {value:>{value_width},}  {note}".rstrip() for name, value, note in rows)
