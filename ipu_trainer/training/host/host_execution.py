"""Training in plain PyTorch on a CPU or a GPU: the stock loop, in fewer and faster forward and backward passes."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, ContextManager, Dict, Optional
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.utils import logging

from ipu_trainer.compat.stock_trainer import StockLoop
from ipu_trainer.compat.torch_workarounds import contiguous_gelu_gradients
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.errors import UserError
from ipu_trainer.training.acceleration.accelerated_training import accelerated, loss_only_step
from ipu_trainer.training.batches import num_model_copies
from ipu_trainer.training.coalescing import (
    AUTO,
    ONE_BY_ONE,
    Coalescing,
    Comparison,
    decide,
    read_coalescing,
    write_coalescing,
)
from ipu_trainer.training.execution import Execution, Stock, changed
from ipu_trainer.training.host.coalesced_batches import by_micro_batches, coalesced_step
from ipu_trainer.training.host.coalescing_measurement import (
    budget_bytes,
    compare_first_micro_batches,
    least_of_processes,
    obstacles,
)
from ipu_trainer.training.host.thread_count import ThreadCount
from ipu_trainer.training.state.generators import generator_states, restore_generators

logger = logging.get_logger(__name__)


class HostExecution(Execution):
    """The stock loop, with coalesced micro-batches and accelerated layers. A step of the loop is one weight update."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.coalescing: Optional[Coalescing] = None  # while a loop runs
        self.chunk = 0  # micro-batches that memory was found to hold at a time
        self._thread_count = ThreadCount()
        self.forget_model()

    def forget_model(self) -> None:
        self._decided: Dict[Any, Coalescing] = {}
        # Floating-point operations of a step, by its model and the shapes of its batch.
        self._operations: WeakKeyDictionary[nn.Module, Dict[Any, int]] = WeakKeyDictionary()

    def __getstate__(self) -> Dict[str, Any]:
        return {"trainer": self.trainer, "coalescing": self.coalescing, "chunk": self.chunk}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)
        self._thread_count = ThreadCount()
        self.forget_model()

    # One training -----------------------------------------------------------------------------------------------

    def run_loop(self, geometry: BatchGeometry, loop: StockLoop, stock: Stock) -> Any:
        """stock(loop); restarted with smaller passes where coalesced ones are out of memory before the first update."""
        trainer, coalescing = self.trainer, self._coalescing_of(geometry, loop.resume_from_checkpoint)
        states, given = generator_states(), (trainer.optimizer, trainer.lr_scheduler)
        while True:
            try:
                with self._thread_count.training(trainer.args), self._coalesced(geometry, coalescing), accelerated(
                    trainer.model, trainer.args
                ):
                    trainer.restart_update()
                    return stock(loop)
            except torch.cuda.OutOfMemoryError:
                if coalescing.factor == 1 or trainer.state.global_step or loop.resume_from_checkpoint:
                    raise
            smaller = max(size for size in range(1, coalescing.factor) if coalescing.factor % size == 0)
            logger.warning(
                "out of memory: passes of %d micro-batches instead of %d; the global batch stays %d",
                smaller,
                coalescing.factor,
                geometry.global_batch,
            )
            trainer.optimizer, trainer.lr_scheduler = given  # those of optimizers=, or None: made again
            trainer.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            restore_generators(states)
            coalescing = Coalescing(smaller, "larger passes were out of memory")

    def evaluation(self) -> ContextManager[None]:
        return self._thread_count.evaluation()

    @contextlib.contextmanager
    def _coalesced(self, geometry: BatchGeometry, coalescing: Coalescing) -> Any:
        """Inside the block loader and loop take passes of so many micro-batches for batches."""
        trainer, factor = self.trainer, coalescing.factor
        samples = geometry.micro_batch * max(1, trainer.args.n_gpu) * factor
        self.chunk = coalescing.chunk or factor
        with changed(self, coalescing=coalescing), changed(trainer, train_batch_size=samples), changed(
            trainer.args, gradient_accumulation_steps=self._accumulation(geometry) // factor
        ):
            yield

    def _accumulation(self, geometry: BatchGeometry) -> int:
        """Micro-batches of one update in this process."""
        return geometry.accumulation_per_process(num_model_copies(self.trainer.args))

    def training_step(self, model: nn.Module, inputs: Any, stock: Stock) -> torch.Tensor:
        trainer, update = self.trainer, self.trainer.update_of(model, inputs)

        def step(chunk: Any) -> torch.Tensor:
            with trainer.weighed_loss(update, chunk):
                loss: torch.Tensor = stock(chunk)
            return loss

        with self._thread_count.of_step(trainer.model), contiguous_gelu_gradients(model), loss_only_step(
            trainer, model, inputs
        ):
            if self._factor == 1:
                loss = step(inputs)
            else:
                micro_batch = trainer.batch_geometry.micro_batch
                loss, self.chunk = coalesced_step(step, model, inputs, micro_batch, self.chunk)
        return loss if update is None else update.logged(loss)

    # Coalescing -------------------------------------------------------------------------------------------------

    @property
    def _requested(self) -> str:
        """host_micro_batch_size; plain TrainingArguments have none, and get the stock loop's single micro-batches."""
        return str(getattr(self.trainer.args, "host_micro_batch_size", ONE_BY_ONE))

    @property
    def _factor(self) -> int:
        """Micro-batches of one pass."""
        return 1 if self.coalescing is None else self.coalescing.factor

    def _coalescing_of(self, geometry: BatchGeometry, checkpoint: Optional[str]) -> Coalescing:
        """As the checkpoint holds it, where there is one and no size was asked for; else as it is decided."""
        held = None
        if self._requested == AUTO:
            held = read_coalescing(checkpoint, geometry.micro_batch, self._accumulation(geometry))
        return held or self.decide_coalescing(geometry)

    def describe(self, checkpoint: Optional[str] = None) -> Dict[str, Any]:
        geometry = self.trainer.batch_geometry
        coalescing = self._coalescing_of(geometry, checkpoint)
        size = coalescing.factor * geometry.micro_batch
        return {"host_micro_batch_size": size, "reason": coalescing.reason}

    def decide_coalescing(self, geometry: Optional[BatchGeometry] = None) -> Coalescing:
        """How many micro-batches are computed in one pass (coalescing.py); nothing of the trainer changes."""
        trainer = self.trainer
        geometry = geometry or trainer.batch_geometry
        args, accumulation = trainer.args, self._accumulation(geometry)
        key = (geometry, id(trainer.model), self._requested)
        if key not in self._decided:
            drop_last, micro_batch = bool(args.dataloader_drop_last), geometry.micro_batch
            found = decide(
                self._requested,
                micro_batch,
                accumulation,
                obstacles(trainer, accumulation),
                lambda factor: trainer.why_not_coalescable(micro_batch, accumulation, factor, drop_last),
                functools.partial(self._compare, micro_batch),
                budget_bytes(trainer),
                rounds=args.device.type == "cuda" or bool(args.bf16 or args.fp16),
                verify=getattr(args, "verify", False),
            )
            if found.factor > 1:
                found = Coalescing(least_of_processes(found.factor, args), found.reason)
            logger.info("coalescing %d micro-batches: %s", found.factor, found.reason)
            self._decided[key] = found
        return self._decided[key]

    def _compare(self, micro_batch: int, count: int, factor: int) -> Comparison:
        with changed(self, coalescing=None, chunk=1):
            return compare_first_micro_batches(self.trainer, self.compute_together, micro_batch, count, factor)

    def compute_together(self, factor: int) -> None:
        """Let loader and training step take batches of `factor` micro-batches."""
        self.coalescing, self.chunk = Coalescing(factor, "compared"), factor

    def describe_batches(self, checkpoint: Optional[str] = None) -> str:
        geometry = self.trainer.batch_geometry
        if self._accumulation(geometry) == 1 or self._requested == ONE_BY_ONE:
            return ""
        coalescing = self._coalescing_of(geometry, checkpoint)
        return f"coalesced: {coalescing.factor} micro-batches in one pass ({coalescing.reason})"

    # What the loop reads ----------------------------------------------------------------------------------------

    def train_dataloader(self, stock: Stock) -> Any:
        """The stock loader, its batches coalesced as decided."""
        trainer = self.trainer
        if self._factor == 1:
            return stock()
        micro_batch, args = trainer.batch_geometry.micro_batch, trainer.args
        # Of whole micro-batches none is left out, whatever they are coalesced into.
        drop_last = args.dataloader_drop_last and len(trainer.train_dataset) % micro_batch > 0
        collator = by_micro_batches(trainer.data_collator, micro_batch)
        with changed(trainer, data_collator=collator), changed(args, dataloader_drop_last=drop_last):
            return stock()

    def loader_geometry(self) -> BatchGeometry:
        # Several GPUs of one process (DataParallel) share out one batch: the micro-batches of all of them.
        geometry, args = self.trainer.batch_geometry, self.trainer.args
        factor, copies = self._factor, max(1, args.n_gpu)
        accumulation = self._accumulation(geometry) // factor
        return BatchGeometry(
            geometry.micro_batch * copies * factor, accumulation, int(args.world_size), geometry.device_iterations
        )

    def wrap_model(self, model: nn.Module, training: bool, stock: Stock) -> Any:
        state = self.trainer.state
        if training and self._factor > 1 and hasattr(state, "train_batch_size"):
            # What resuming compares with the arguments.
            state.train_batch_size = self.trainer.batch_geometry.micro_batch
        return stock()

    def floating_point_ops(self, inputs: Any, stock: Stock) -> int:
        """Counted once for each shape of batch: counting parameters takes milliseconds."""
        known = self._operations.setdefault(self.trainer.model, {})
        shapes = tuple((name, getattr(value, "shape", None)) for name, value in inputs.items())
        if shapes not in known:
            known[shapes] = int(stock())
        return known[shapes]

    def write_checkpoint(self, folder: str) -> None:
        if self.coalescing is not None:
            write_coalescing(folder, self.coalescing.factor, self.chunk, self.trainer.batch_geometry.micro_batch)

    def load_optimizer_state(self, checkpoint: Optional[str], stock: Stock) -> None:
        """Restore optimizer and scheduler. Raises UserError for a state that was written on a device."""
        try:
            stock(checkpoint)
        except KeyError as error:
            if str(error) not in ("'state'", "'params'"):
                raise
            raise UserError(
                f"the optimizer state in {checkpoint} was written on a device, and the host keeps it in another form. Resume with "
                "the backend that it was trained on, or start from its weights: --model CHECKPOINT."
            ) from error
