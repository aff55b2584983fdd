"""The order of samples, their micro-batches and their processes: a pure function of (seed, epoch, position).

an epoch    = host steps, one after another, all of them whole (static shapes are what IPUs need)
a host step = device iterations x accumulation x replicas micro-batches
process p of W takes micro-batches p, p + W, p + 2 W, ... so every weight update has the same samples for any number of
processes.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Sampler

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.known_labels import prevalence


class FindingBatchSampler(Sampler):  # type: ignore[type-arg]  # not generic at run time on torch 2.0
    """Yields one list of (epoch, position) keys for each micro-batch of this process.

    labels: (num_samples, num_findings), 0, 1, or NaN where a label is unknown.
    balance: 0 visits every sample once an epoch. Above 0, an epoch draws num_samples samples with replacement, each with
        probability (1 - balance) / num_samples + balance * w / sum(w), where w is 1 / frequency of the sample's rarest
        finding: at 1 a Hernia is drawn as often as an Infiltration. Frequencies are among known labels, and an unknown label
        is no finding of the sample.
    tail: "drop" leaves out what does not fill the last host step, "pad" fills it with the epoch's first samples.
    Raises UserError if an epoch would be empty, or the replicas cannot be shared by num_processes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        geometry: BatchGeometry,
        *,
        seed: int = 0,
        balance: float = 0.0,
        shuffle: bool = True,
        tail: str = "drop",
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if not 0.0 <= balance <= 1.0:
            raise UserError(f"balance {balance} must be from 0 (every sample once) to 1 (rare findings as often).")
        if balance and not shuffle:
            raise UserError(f"balance {balance} draws samples at random, which shuffle=False forbids. Use balance=0.")
        if not 0 <= process_index < num_processes:
            raise UserError(f"process_index {process_index} must be from 0 to {num_processes - 1}.")
        if tail not in ("drop", "pad"):
            raise UserError(f"tail {tail!r} is neither 'drop' nor 'pad': host steps are whole.")
        geometry.accumulation_per_process(num_processes)
        self.plan = geometry.epoch(len(labels), tail)
        self.geometry, self.seed, self.balance, self.shuffle = geometry, seed, balance, shuffle
        self.process_index, self.num_processes = process_index, num_processes
        self.epoch = 0
        self._start = 0
        self._num_samples = len(labels)
        self._probabilities = _balanced(labels, balance) if balance else None

    def __len__(self) -> int:
        """Micro-batches of this process in a whole epoch."""
        num_samples = self.plan.host_steps * self.geometry.samples_per_host_step
        return num_samples // (self.geometry.micro_batch * self.num_processes)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration starts this epoch."""
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0

    def start_at(self, micro_batch: int) -> None:
        """The next iteration starts at this micro-batch of this process and skips the earlier ones."""
        if not 0 <= micro_batch <= len(self):
            raise UserError(f"micro_batch {micro_batch} must be from 0 to {len(self)}, the length of an epoch.")
        self._start = micro_batch

    def state_dict(self) -> Dict[str, int]:
        return {"epoch": self.epoch, "micro_batch": self._start}

    def load_state_dict(self, state: Dict[str, int]) -> None:
        self.epoch = int(state["epoch"])
        self.start_at(int(state["micro_batch"]))

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        micro_batches = self.order(self.epoch).reshape(-1, self.geometry.micro_batch)
        mine = micro_batches[self.process_index :: self.num_processes]
        epoch, start, self._start = self.epoch, self._start, 0
        for position in range(start, len(mine)):
            yield [(epoch, int(sample)) for sample in mine[position]]

    def order(self, epoch: int) -> np.ndarray:
        """int64 (host steps x samples per host step,): the samples of an epoch, for all processes together."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), epoch]))
        if self._probabilities is not None:
            order = generator.choice(self._num_samples, self._num_samples, p=self._probabilities)
        elif self.shuffle:
            order = generator.permutation(self._num_samples)
        else:
            order = np.arange(self._num_samples)
        return np.resize(order, self.plan.host_steps * self.geometry.samples_per_host_step).astype(np.int64)


def batch_sampler(examples: Sequence[Dict[str, Any]]) -> Dict[str, torch.Tensor]:
    """The chest X-ray tutorial's collator: examples with `pixel_values` and `labels`, stacked to one micro-batch."""
    return {
        "pixel_values": torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples]),
        "labels": torch.stack([torch.as_tensor(example["labels"], dtype=torch.float32) for example in examples]),
    }


def _balanced(labels: np.ndarray, balance: float) -> np.ndarray:
    frequency = np.maximum(prevalence(labels), 1.0 / len(labels))
    weight = np.maximum((np.nan_to_num(labels) / frequency).max(axis=1), 1.0)
    probabilities: np.ndarray = (1.0 - balance) / len(labels) + balance * weight / weight.sum()
    return np.asarray(probabilities / probabilities.sum())
