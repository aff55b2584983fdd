"""Data sets without a length, on a device: shapes are fixed, so what is left after whole host steps is left out."""

from __future__ import annotations

from typing import Any, Iterator, List

from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

logger = logging.get_logger(__name__)


class WholeHostSteps(IterableDataset):  # type: ignore[type-arg]
    """The samples of another data set, as many as make whole host steps. Everything else is asked of that data set.

    Holds back one host step of samples. With loading processes each of them has its own steps and leaves out its own rest.
    Raises ValueError at the end of a data set that does not fill one host step.
    """

    def __init__(self, dataset: Any, samples_per_host_step: int) -> None:
        self.dataset = dataset
        self.samples_per_host_step = samples_per_host_step

    def __iter__(self) -> Iterator[Any]:
        waiting: List[Any] = []
        num_steps = 0
        for sample in self.dataset:
            waiting.append(sample)
            if len(waiting) == self.samples_per_host_step:
                num_steps += 1
                yield from waiting
                waiting = []
        if num_steps == 0 and get_worker_info() is None:
            raise ValueError(
                f"the data set ended after {len(waiting)} samples, but a host step takes {self.samples_per_host_step}. "
                "Use a smaller micro-batch, accumulation, replication or device_iterations, or more data."
            )
        if waiting:
            logger.warning("%d samples at the end are no whole host step and are left out", len(waiting))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)
