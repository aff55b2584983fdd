"""Weights the loss of each micro-batch, so that an update does not depend on how its samples are cut into micro-batches.

Stock Trainer divides each micro-batch's loss by their number, or not at all where it believes that the model has divided by
num_items_in_batch (transformers 5.24: by signatures). Here a loss is what loss_reduction.py finds, once for each class of model:

    a sum divided by num_items_in_batch   as it is, with the number of the whole update, as stock
    a sum                                 as it is
    a mean                                times what the micro-batch holds of the update's samples or labels

What is none of these is refused. `loss_is_scaled_for_ga` of transformers 5.24 answers instead of the computation, on every version:
False (micro-batches are averaged) or True (taken as it is).
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional

import datasets
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import logging

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.accelerate_internals import is_prepared
from ipu_trainer.compat.stock_trainer import StockTrainer
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.errors import UserError
from ipu_trainer.training.batches import shapes_of_rows
from ipu_trainer.training.loss.loss_reduction import (
    COMPARED,
    MEAN,
    MICRO_BATCHES,
    PER_ITEM,
    SAMPLES,
    SUM,
    Count,
    LossNotComparable,
    LossReduction,
    NeitherMeanNorSum,
    find_loss_reduction,
)
from ipu_trainer.training.state.generators import generator_states, restore_generators, undisturbed

logger = logging.get_logger(__name__)


class AccumulatedLoss(StockTrainer):
    """Trainer whose weight updates are those of their samples: see the module."""

    loss_is_scaled_for_ga: Optional[bool] = None
    compute_loss: Any
    model_on_host: Any
    train_dataset: Any
    data_collator: Any
    loader_follows_coalescing: bool
    _loss_reductions: Dict[Any, LossReduction]
    _update: Optional[UpdateInProgress] = None

    @property
    def batch_geometry(self) -> BatchGeometry:
        raise NotImplementedError

    # What the loss is ---------------------------------------------------------------------------------------------

    def loss_reduction(self, inputs: Any = None) -> Optional[LossReduction]:
        """What the loss does with its samples; found out on `inputs` where it is not known yet (None: not found out now).

        Raises UserError where it is neither a mean nor a sum, so that accumulation cannot be exact.
        """
        if self.loss_is_scaled_for_ga is not None:
            return LossReduction(PER_ITEM) if self.loss_is_scaled_for_ga else LossReduction(MEAN, MICRO_BATCHES)
        key = (type(self.model), id(getattr(self, "compute_loss_func", None)))
        if key not in self._loss_reductions and inputs is not None:
            found = _as_first_process(lambda: self._find_reduction(inputs), self.args)
            logger.info("the loss of %s is %s", type(self.model).__name__, found.describe())
            self._loss_reductions[key] = found
        return self._loss_reductions.get(key)

    def loss_reduction_ahead(self) -> Optional[LossReduction]:
        """loss_reduction() of the training set before anything is trained; None where only the loop reads it."""
        if not self.accumulates:
            return None
        return self.loss_reduction() or self.loss_reduction(self._some_samples())

    def _some_samples(self) -> Any:
        """A batch from all over the training set; None of a stream, or where a subclass loads it otherwise."""
        dataset: Any = self.train_dataset
        is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not is_indexed or not self.loader_follows_coalescing or not len(dataset):
            return None
        is_table = isinstance(dataset, datasets.Dataset)
        dataset, collator = self.drop_unused_columns(dataset, self.data_collator, is_table)
        count = min(COMPARED, len(dataset))
        states = generator_states()
        try:
            return collator([dataset[number * len(dataset) // count] for number in range(count)])
        finally:
            restore_generators(states)

    def _find_reduction(self, inputs: Any) -> LossReduction:
        is_autocast = (self.args.fp16 or self.args.bf16) and is_prepared(self.model)
        is_half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in self.model.parameters())
        is_tf32 = self.args.device.type == "cuda" and bool(getattr(self.args, "tf32", False))
        is_given_items = "labels" in inputs and (
            getattr(self, "compute_loss_func", None) is not None
            or bool(getattr(self, "model_accepts_loss_kwargs", False))
        )
        try:
            with undisturbed(self.model):
                self.model.eval()
                return find_loss_reduction(
                    self._computed_loss,
                    self.prepared_inputs(inputs),
                    self.label_names,
                    is_given_items,
                    compat.loss_shifts_labels(self),
                    getattr(getattr(self.model, "config", None), "semantic_loss_ignore_index", None) or -100,
                    rounds=is_autocast or is_tf32 or is_half,
                )
        except NeitherMeanNorSum as found:
            raise UserError(
                f"the loss of {type(self.model).__name__} ({_where(self)}) is neither a mean nor a sum over its samples: {found}. "
                f"So {self.batch_geometry.describe()} would not make the update of its {self.batch_geometry.global_batch} "
                "samples. Use a micro-batch of the whole global batch without accumulation and replicas, let the loss be a sum "
                "divided by num_items_in_batch (class weights too: a sum of weighted losses), or set loss_is_scaled_for_ga = "
                "False on the trainer to average micro-batches as they are."
            ) from None
        except (LossNotComparable, RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if should_reduce_batch_size(error):
                raise
            logger.warning(
                "what the loss of %s does with its samples could not be found out (%s: %s); it is taken for a mean over "
                "samples. Set loss_is_scaled_for_ga on the trainer to say so, or otherwise.",
                type(self.model).__name__,
                type(error).__name__,
                str(error)[:200],
            )
            return LossReduction(MEAN, SAMPLES)

    def _computed_loss(self, inputs: Dict[str, Any], num_items: Optional[torch.Tensor]) -> float:
        given = {} if num_items is None else {"num_items_in_batch": num_items}
        for with_gradients in (False, True):  # some losses ask for gradients themselves
            try:
                with torch.set_grad_enabled(with_gradients):  # in float32: before 5.0 the usual context would round
                    loss = self.compute_loss(self.model_on_host(), dict(inputs), **given)
                break
            except RuntimeError as error:
                if with_gradients or "grad" not in str(error):
                    raise
        return float(loss.detach().float().mean())

    def loss_of_micro_batch(self, model: nn.Module, inputs: Dict[str, Any], num_items: Any) -> torch.Tensor:
        """The loss that a device computes of one micro-batch. num_items: num_items_in_batch, or None."""
        with self.compute_loss_context_manager():
            given = {} if num_items is None else {"num_items_in_batch": num_items}
            loss: torch.Tensor = self.compute_loss(model, inputs, **given)
        return loss

    # How its micro-batches count ------------------------------------------------------------------------------------

    def get_batch_samples(self, *positional: Any, **named: Any) -> Any:
        """From transformers 4.46 on: the micro-batches of the next update, which are counted before the first is computed."""
        samples, num_items = super().get_batch_samples(*positional, **named)
        self._update = None
        if samples and self.accumulates:
            reduction = self.loss_reduction() or self.loss_reduction(_joined(samples))
            assert reduction is not None
            total: Any = sum(reduction.items(inputs, self.batch_geometry.micro_batch) for inputs in samples)
            self._update = UpdateInProgress(reduction, self._over_processes(reduction, total))
            if reduction.kind != PER_ITEM and self.loss_is_scaled_for_ga is None:
                num_items = None
        return samples, num_items

    def restart_update(self) -> None:
        """Forget what was computed of an update that was not made."""
        self._update = None

    @property
    def accumulates(self) -> bool:
        """Whether an update has more than one micro-batch."""
        geometry = self.batch_geometry
        return geometry.global_batch > geometry.micro_batch

    def _over_processes(self, reduction: LossReduction, count: Count) -> Count:
        """The items that one process has on average: gradients are means over processes. Samples are shared out equally."""
        averages = reduction.counts_labels and getattr(self.args, "average_tokens_across_devices", True)
        if not averages or self.args.world_size == 1:
            return count
        total: Count = self.sum_over_processes(torch.as_tensor(count, device=self.args.device)) / self.args.world_size
        return total

    def sum_over_processes(self, counts: torch.Tensor) -> torch.Tensor:
        """Numbers of labels of all processes, float64."""
        if self.args.world_size == 1 or not torch.distributed.is_initialized():
            return counts
        total: torch.Tensor = counts.to(torch.float64, copy=True)
        torch.distributed.all_reduce(total)
        return total

    def update_of(self, model: nn.Module, inputs: Any) -> Optional[UpdateInProgress]:
        """The update that this batch is a part of; None where a micro-batch is all of it."""
        if not self.accumulates:
            return None
        if self._update is not None and self._update.is_counted:
            return self._update
        # Before transformers 4.46 the loop shows one batch at a time, and divides by their number.
        reduction = self.loss_reduction(inputs)
        assert reduction is not None
        if self._update is None or self._update.step != self.state.global_step:
            self._update = UpdateInProgress(reduction, step=self.state.global_step, expected=self._batches_of_update())
        count = reduction.items(inputs, self.batch_geometry.micro_batch)
        self._update.add(model, float(count), lambda total: float(self._over_processes(reduction, total)))
        return self._update

    def _batches_of_update(self) -> int:
        """How many batches of the loader make an update in the loop of 4.29, which ends one with a shorter epoch."""
        accumulation = int(self.args.gradient_accumulation_steps)
        loader = getattr(self.callback_handler, "train_dataloader", None)
        try:
            return min(accumulation, len(loader)) if loader is not None else accumulation
        except TypeError:  # a stream
            return accumulation

    @contextlib.contextmanager
    def weighed_loss(self, update: Optional[UpdateInProgress], inputs: Any) -> Iterator[None]:
        """Around the stock step of a part of an update: its loss counts by what the part holds, and stock does not divide it."""
        if update is None:
            yield
            return
        weigh = update.weighing(inputs, self.batch_geometry.micro_batch, int(self.args.world_size))
        computed, own = self.compute_loss, vars(self).get("compute_loss")

        def compute_loss(*positional: Any, **named: Any) -> Any:
            loss = computed(*positional, **named)
            return (weigh(loss[0]), *loss[1:]) if isinstance(loss, tuple) else weigh(loss)

        self.compute_loss = compute_loss
        try:
            with compat.undivided_loss(self):
                yield
        finally:
            if own is None:
                del self.compute_loss
            else:
                self.compute_loss = own


class UpdateInProgress:
    """How many items the micro-batches of a weight update hold, all together.

    total: counted before the first is computed. Without it, `expected` batches as the first one are assumed, and gradients are put
    right when the last one turns out otherwise.
    """

    def __init__(
        self, reduction: LossReduction, total: Optional[Count] = None, step: int = -1, expected: int = 1
    ) -> None:
        self.reduction, self.step = reduction, step
        self.is_counted = total is not None
        self.total: Count = 0 if total is None else total
        self._expected, self._batches, self._items = expected, 0, 0.0
        self._shown: Optional[torch.Tensor] = None
        self._correction: Optional[torch.Tensor] = None

    def add(self, model: nn.Module, items: float, over_processes: Callable[[float], float]) -> None:
        """The next batch, before it is computed."""
        if not self._batches:
            self.total = max(items, 1.0) * self._expected
        self._batches, self._items = self._batches + 1, self._items + items
        if self._batches < self._expected or self.reduction.kind != MEAN:
            return
        total = over_processes(self._items) or 1.0
        if total != self.total:
            factor, self.total = float(self.total) / total, total
            self._correction = None if self._shown is None else self._shown * (factor - 1)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def logged(self, loss: torch.Tensor) -> torch.Tensor:
        """What the loop adds up for the log when this part has been computed."""
        corrected = loss if self._correction is None else loss + self._correction
        self._shown = loss if self._shown is None else self._shown + loss
        return corrected

    def weighing(self, inputs: Any, micro_batch: int, num_processes: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the loss of a part of the update is multiplied by."""
        reduction, total = self.reduction, self.total
        if reduction.kind != MEAN:
            return lambda loss: loss * num_processes if reduction.kind == SUM else loss
        items = reduction.items(inputs, micro_batch)
        if not torch.is_tensor(items):
            return lambda loss: loss if items == total else loss / (total / items)
        # A mean over no labels is NaN, and is none of the update.
        return lambda loss: torch.where(items > 0, loss / (total / items).to(loss.dtype), torch.zeros_like(loss))


def _joined(samples: List[Any]) -> Any:
    """Enough of the micro-batches in one to see what the loss does with several samples; of various shapes the largest alone."""
    joined, rows = samples[0], int(find_batch_size(samples[0]))
    for inputs in samples[1:]:
        alike = shapes_of_rows(joined, rows) == shapes_of_rows(inputs, int(find_batch_size(inputs)))
        if rows >= COMPARED or not alike or shapes_of_rows(joined, rows) is None:
            break
        joined = {name: torch.cat([value, inputs[name]]) for name, value in joined.items()}
        rows += int(find_batch_size(inputs))
    return joined if rows > 1 else max(samples, key=lambda inputs: int(find_batch_size(inputs)))


def _where(trainer: Any) -> str:
    """Whose loss it is."""
    if getattr(trainer, "compute_loss_func", None) is not None:
        return "by compute_loss_func"
    owner = next(cls for cls in type(trainer).__mro__ if "compute_loss" in vars(cls))
    return (
        "its own"
        if owner.__module__.startswith(("transformers.", "ipu_trainer.compat."))
        else f"by {owner.__name__}.compute_loss"
    )


def _as_first_process(find: Callable[[], LossReduction], args: Any) -> LossReduction:
    """What the first process found on its samples, or the error: all processes must weigh alike."""
    if args.world_size == 1 or not torch.distributed.is_initialized():
        return find()
    found: List[Any] = [None]
    if args.process_index == 0:
        try:
            found = [find()]
        except ValueError as error:
            found = [error]
    torch.distributed.broadcast_object_list(found, src=0)
    if isinstance(found[0], ValueError):
        raise found[0]
    reduction: LossReduction = found[0]
    return reduction
