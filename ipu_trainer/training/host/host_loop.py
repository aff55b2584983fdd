"""The stock training loop on a CPU or a GPU, in fewer and faster passes: the part of IPUTrainer that is not about devices.

What it changes of Trainer:

    get_batch_samples      the time it takes
    training_step          micro-batches count by what they hold of their update (accumulated_loss.py), and folded passes are split
                           where memory ends (passes.py);
                           what a torch version computes wrongly is mended (torch_faults.py); logits that are not read are
                           not copied to float32 (loss_only_forward.py), and nothing waits for a GPU (host_sync.py)
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ipu_trainer.backends import Backend
from ipu_trainer.compat import torch_workarounds as torch_faults
from ipu_trainer.compat.trainer_signatures import AnyRelease
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.training.acceleration.accelerated_training import accelerated
from ipu_trainer.training.acceleration.host_sync import skip_packing_check
from ipu_trainer.training.acceleration.loss_only_forward import reads_only_loss, skip_logits_upcast
from ipu_trainer.training.host.coalesced_batches import by_micro_batches, folded_step
from ipu_trainer.training.host.coalescing import Folding, decide, why_not_by_size
from ipu_trainer.training.loss.accumulated_loss import AccumulatedLoss
from ipu_trainer.training.state.generators import generator_states, restore_generators

logger = logging.get_logger(__name__)
# Above this share of the time spent in waiting for data, a run is told that its loader is what holds it up.
_LOADER_BOUND = 0.5


class HostLoop(AnyRelease, AccumulatedLoss):
    """Trainer with folded micro-batches and compiled layers; IPUTrainer says of what batch geometry, and on which backend."""

    backend: Backend
    _foldings: Dict[Any, Folding]
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    data_collator: Any
    _train_batch_size: int

    @property
    def batch_geometry(self) -> BatchGeometry:
        raise NotImplementedError

    folding: Optional[Folding] = None  # while a loop runs on the host
    largest_part: Optional[int] = None  # micro-batches of a pass that memory was found to hold at a time
    loader_follows_folding = True  # a subclass with its own get_train_dataloader says so if it takes _train_batch_size
    data_wait_share = 0.0  # of the last training, from transformers 4.46 on
    _data_wait_seconds = 0.0

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "get_train_dataloader" in vars(cls) and "loader_follows_folding" not in vars(cls):
            cls.loader_follows_folding = False

    def _stock_loop(self, geometry: BatchGeometry, positional: Tuple[Any, ...], named: Dict[str, Any]) -> TrainOutput:
        """The stock loop; begun anew with smaller passes if folded ones are out of memory before the first update."""
        states, given = generator_states(), (self.optimizer, self.lr_scheduler)
        while True:
            try:
                self.start_update()
                on_device = self.backend.has_executors
                with contextlib.nullcontext() if on_device else accelerated(self.model, self.args):
                    return super()._inner_training_loop(self._train_batch_size, *positional, **named)
            except torch.cuda.OutOfMemoryError:
                folding, begun = self.folding, self.state.global_step
                if folding is None or folding.factor == 1 or begun or named.get("resume_from_checkpoint"):
                    raise
            smaller = max(size for size in range(1, folding.factor) if folding.factor % size == 0)
            logger.warning(
                "out of memory: passes of %d micro-batches instead of %d; the global batch stays %d",
                smaller,
                folding.factor,
                geometry.global_batch,
            )
            self.optimizer, self.lr_scheduler = given  # those of optimizers=, or None: made anew
            self.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            restore_generators(states)
            self._fold(geometry, Folding(smaller, folding.reason))

    def _num_workers(self) -> int:
        """Model copies that compute side by side: processes, or GPUs of one process under DataParallel."""
        return int(self.args.world_size) * max(1, int(self.args.n_gpu))

    def _fold(self, geometry: BatchGeometry, folding: Optional[Folding] = None) -> None:
        """On the host: how many micro-batches are one pass, set where the loop reads it."""
        accumulation = geometry.accumulation_per_process(self._num_workers())
        copies = max(1, self.args.n_gpu)
        if folding is None:
            folding = self.decide_folding(geometry)
        self.folding, self.largest_part = folding, None
        self.args.gradient_accumulation_steps = accumulation // folding.factor
        self._train_batch_size = geometry.micro_batch * copies * folding.factor

    def decide_folding(self, geometry: Optional[BatchGeometry] = None) -> Folding:
        """How many micro-batches the host computes together (folding.py), without changing anything."""
        geometry = self.batch_geometry if geometry is None else geometry
        if self.backend.has_executors or not getattr(self.args, "fold", False):
            return Folding(1, "on a device" if self.backend.has_executors else "not asked for")
        key = (geometry, id(self.model))
        folding = self._foldings.get(key)
        if folding is None:
            accumulation = geometry.accumulation_per_process(self._num_workers())
            folding = decide(self, geometry.micro_batch, accumulation)
            self._foldings[key] = folding
            logger.info("folding %d: %s", folding.factor, folding.reason)
        return folding

    def why_not_foldable(self, micro_batch: int, accumulation: int, factor: int, drop_last: bool) -> Optional[str]:
        """Whether an epoch's samples allow it; a subclass whose loader gives whole updates alone says None."""
        processes, weighs = int(self.args.world_size), hasattr(Trainer, "get_batch_samples")
        size = len(self.train_dataset)
        return why_not_by_size(size, micro_batch, accumulation, factor, drop_last, processes, weighs)

    @contextlib.contextmanager
    def _waiting_told(self) -> Iterator[None]:
        """Around a training: what share of it went by in waiting for data, and a warning where it is most."""
        self._data_wait_seconds, begin = 0.0, time.perf_counter()
        yield
        self.data_wait_share = self._data_wait_seconds / (time.perf_counter() - begin)
        if self.data_wait_share > _LOADER_BOUND:
            logger.warning(
                "%.0f %% of the training went by waiting for data. More dataloader_num_workers (now %d), or data that is "
                "prepared beforehand, would make it faster.",
                100 * self.data_wait_share,
                self.args.dataloader_num_workers,
            )

    @property
    def data_wait_seconds(self) -> Optional[float]:
        """How long this training has waited for batches so far; None before transformers 4.46, whose loop does not say."""
        return self._data_wait_seconds if hasattr(Trainer, "get_batch_samples") else None

    def get_batch_samples(self, *positional: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        both = super().get_batch_samples(*positional, **named)
        self._data_wait_seconds += time.perf_counter() - begin
        return both

    def training_step(self, model: nn.Module, inputs: Any, *positional: Any, **named: Any) -> torch.Tensor:
        stock, update = super().training_step, self._take_up(model, inputs)
        # Of an own compute_loss nobody knows what else it gives the model, and what it reads.
        only_loss = reads_only_loss(self, model)

        def step(part: Any) -> torch.Tensor:
            with self.weighed_loss(update, part):
                loss: torch.Tensor = stock(model, part, *positional, **named)
            return loss

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch_faults.mended(model))
            if only_loss:
                stack.enter_context(skip_packing_check(inputs))
                stack.enter_context(skip_logits_upcast())
            if self.folding is not None and self.folding.factor > 1:
                loss = folded_step(self, step, model, inputs)
            else:
                loss = step(inputs)
        return loss if update is None else update.logged(loss)

    def _folded_dataloader(self) -> Any:
        """The stock loader of training, its batches folded as decided."""
        if self.folding is None or self.folding.factor == 1:
            return super().get_train_dataloader()
        given, collator = self.args.dataloader_drop_last, self.data_collator
        self.data_collator = by_micro_batches(collator, self.batch_geometry.micro_batch)
        # Of whole micro-batches none is left out, whatever they are folded into.
        self.args.dataloader_drop_last = given and len(self.train_dataset) % self.batch_geometry.micro_batch > 0
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last, self.data_collator = given, collator
