"""Training batches of whole host steps: shapes are fixed, so what does not fill one is filled up or left out."""

from __future__ import annotations

from typing import Any, Iterator, List, Optional

from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from ipu_trainer.config.batching import BatchGeometry, EpochPlan
from ipu_trainer.errors import UserError
from ipu_trainer.training.batches import num_model_copies
from ipu_trainer.training.device.host_step import epoch_warnings
from ipu_trainer.training.execution import Execution, Stock, changed

logger = logging.get_logger(__name__)


class WholeHostStepLoading(Execution):
    """The part of an execution that says how samples become host steps of this process."""

    def geometry_of_process(self) -> BatchGeometry:
        """The batch geometry with the replicas of this process alone."""
        geometry: BatchGeometry = self.trainer.batch_geometry
        replicas = geometry.replicas // num_model_copies(self.trainer.args)
        return BatchGeometry(geometry.micro_batch, geometry.gradient_accumulation, replicas, geometry.device_iterations)

    def samples_per_batch(self) -> int:
        """Of a host step of this process."""
        return self.geometry_of_process().samples_per_host_step

    def train_dataloader(self, stock: Stock) -> Any:
        """The stock loader with batches of whole host steps."""
        trainer, dataset = self.trainer, self.trainer.train_dataset
        if isinstance(dataset, IterableDataset):
            dataset = WholeHostSteps(dataset, trainer.batch_geometry.samples_per_host_step)
        samples, drop_last = self.samples_per_batch(), not self.fills_up  # shapes are fixed
        as_host_steps = changed(trainer, train_batch_size=samples, train_dataset=dataset)
        with as_host_steps, changed(trainer.args, dataloader_drop_last=drop_last):
            return stock()

    def loader_geometry(self) -> BatchGeometry:
        processes = int(self.trainer.args.world_size)
        return BatchGeometry(self.trainer.batch_geometry.samples_per_host_step // processes, replicas=processes)

    @property
    def fills_up(self) -> bool:
        """Whether the last batch of an epoch is filled up, rather than left out: where that is exact and was not refused."""
        trainer, args = self.trainer, self.trainer.args
        if args.dataloader_drop_last or args.world_size > 1 or trainer.ipu_config.device_iterations > 1:
            return False
        if not hasattr(trainer.train_dataset, "__len__") or not trainer.has_stock_train_loader:
            return False
        return bool(len(trainer.train_dataset) % trainer.batch_geometry.samples_per_host_step)

    def epoch_plan(self) -> Optional[EpochPlan]:
        dataset, geometry = self.trainer.train_dataset, self.trainer.batch_geometry
        if dataset is None or not hasattr(dataset, "__len__"):
            return None
        is_empty = not self.fills_up and len(dataset) < geometry.samples_per_host_step
        return None if is_empty else geometry.epoch(len(dataset), "pad" if self.fills_up else "drop")

    def warn_of_incomplete_host_steps(self, geometry: BatchGeometry) -> None:
        """Log which samples are left out, unless a subclass has its own loader. Raises UserError where no host step is whole."""
        dataset = self.trainer.train_dataset
        if self.trainer.has_stock_train_loader and hasattr(dataset, "__len__"):
            for warning in epoch_warnings(len(dataset), geometry, self.fills_up):
                logger.warning(warning)


class WholeHostSteps(IterableDataset):  # type: ignore[type-arg]
    """The samples of a stream, as many as make whole host steps. Every other attribute is the stream's own.

    Holds back one host step of samples. With loading processes each of them has its own steps and leaves out its own rest.
    Raises UserError at the end of a data set that does not fill one host step.
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
            raise UserError(
                f"the data set ended after {len(waiting)} samples, but a host step takes {self.samples_per_host_step}. "
                "Use a smaller micro-batch, accumulation, replication or device_iterations, or more data."
            )
        if waiting:
            logger.warning("%d samples at the end are no whole host step and are left out", len(waiting))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)
