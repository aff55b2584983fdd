"""What the host asks of a trainer's training loader: whether micro-batches can be coalesced, and how long a training waits."""

from __future__ import annotations

import time
from typing import Any, Optional

from transformers import Trainer
from transformers.utils import logging

from ipu_trainer.compat.stock_trainer import StockLoop, StockTrainer
from ipu_trainer.training.coalescing import why_not_by_size

logger = logging.get_logger(__name__)
# Above this share of a training's time a warning says that the data loader limits it.
_LOADER_BOUND = 0.5


class TracksTrainingLoader(StockTrainer):
    """Trainer whose stock loader follows train_batch_size, and that measures how long get_batch_samples waits for batches.

    A subclass with a loader of its own says whether that follows. Waiting is measured from transformers 4.46 on, whose loop
    calls get_batch_samples.
    """

    # Whether get_train_dataloader makes batches of train_batch_size samples.
    loader_follows_coalescing = True
    data_wait_share = 0.0  # of the last training
    _data_wait_seconds = 0.0

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "get_train_dataloader" in vars(cls) and "loader_follows_coalescing" not in vars(cls):
            cls.loader_follows_coalescing = False

    def why_not_coalescable(self, micro_batch: int, accumulation: int, factor: int, drop_last: bool) -> Optional[str]:
        """Why an epoch's samples do not allow passes of `factor` micro-batches. None where a loader gives whole updates alone."""
        weighs = hasattr(Trainer, "get_batch_samples")  # from transformers 4.46 on
        sizes = (len(self.train_dataset), micro_batch, accumulation, factor)
        return why_not_by_size(*sizes, drop_last, int(self.args.world_size), weighs)

    @property
    def data_wait_seconds(self) -> Optional[float]:
        """Seconds that this training has waited for batches so far; None before transformers 4.46."""
        return self._data_wait_seconds if hasattr(Trainer, "get_batch_samples") else None

    def get_batch_samples(self, *positional: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        both = super().get_batch_samples(*positional, **named)
        self._data_wait_seconds += time.perf_counter() - begin
        return both

    def training_loop(self, loop: StockLoop) -> Any:
        self._data_wait_seconds, begin = 0.0, time.perf_counter()
        output = super().training_loop(loop)
        self.data_wait_share = self._data_wait_seconds / (time.perf_counter() - begin)
        if self.data_wait_share > _LOADER_BOUND:
            logger.warning(
                "%.0f %% of the training went by waiting for data. More dataloader_num_workers (now %d), or data that is "
                "prepared beforehand, would make it faster.",
                100 * self.data_wait_share,
                self.args.dataloader_num_workers,
            )
        return output
