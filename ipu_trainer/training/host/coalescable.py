"""What a trainer says of its training loader, so that the host may coalesce its micro-batches."""

from __future__ import annotations

from typing import Any, Optional

from transformers import Trainer

from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.training.coalescing import why_not_by_size


class Coalescable(StockTrainer):
    """Trainer whose stock loader follows train_batch_size. A subclass with a loader of its own says whether that does."""

    # Whether get_train_dataloader makes batches of train_batch_size samples.
    loader_follows_coalescing = True

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "get_train_dataloader" in vars(cls) and "loader_follows_coalescing" not in vars(cls):
            cls.loader_follows_coalescing = False

    def why_not_coalescable(self, micro_batch: int, accumulation: int, factor: int, drop_last: bool) -> Optional[str]:
        """Why an epoch's samples do not allow passes of `factor` micro-batches. None where a loader gives whole updates alone."""
        weighs = hasattr(Trainer, "get_batch_samples")  # from transformers 4.46 on
        sizes = (len(self.train_dataset), micro_batch, accumulation, factor)
        return why_not_by_size(*sizes, drop_last, int(self.args.world_size), weighs)
