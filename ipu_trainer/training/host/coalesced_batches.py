"""Batches of several micro-batches (coalescing.py decides how many): how their samples are collated, and computed in chunks."""

from __future__ import annotations

import gc
from typing import Any, Callable, List, Tuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.utils.data import default_collate
from transformers import DefaultDataCollator, default_data_collator
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import logging

from ipu_trainer.training.batches import rows_of, shapes_of_rows
from ipu_trainer.training.state.generators import generator_states, restore_generators

logger = logging.get_logger(__name__)


def by_micro_batches(collator: Callable[[Any], Any], micro_batch: int) -> Callable[[Any], Any]:
    """The collator for batches of several micro-batches: the given one where it only stacks samples."""
    stacks = collator in (default_data_collator, default_collate) or isinstance(collator, DefaultDataCollator)
    return collator if stacks else MicroBatches(collator, micro_batch)


class MicroBatches:
    """A collator that makes each micro-batch of a batch by itself, as the stock loop does, and joins them.

    So padding and random numbers are those of single micro-batches. Where they differ in shape (padded to their longest
    sample each), `collator` makes one batch of all samples instead.
    """

    def __init__(self, collator: Callable[[Any], Any], micro_batch: int) -> None:
        self.collator, self.micro_batch = collator, micro_batch

    def __call__(self, samples: Any) -> Any:
        if not isinstance(samples, list) or len(samples) <= self.micro_batch:
            return self.collator(samples)
        groups = [samples[begin : begin + self.micro_batch] for begin in range(0, len(samples), self.micro_batch)]
        states = generator_states(with_cuda=False)  # loading processes must not touch a GPU
        first, second = self.collator(groups[0]), self.collator(groups[1])
        shapes = shapes_of_rows(first, len(groups[0]))
        if shapes is not None and shapes == shapes_of_rows(second, len(groups[1])):
            batches = [first, second, *(self.collator(group) for group in groups[2:])]
            if all(shapes_of_rows(batch, len(group)) == shapes for batch, group in zip(batches, groups)):
                return {name: torch.cat([batch[name] for batch in batches]) for name in first}
        restore_generators(states)
        return self.collator(samples)


def chunks_of(rows: int, micro_batch: int, largest: int) -> List[Tuple[int, int]]:
    """Begin and end of the chunks of so many samples: at most `largest` whole micro-batches each, or a smaller last one."""
    whole = rows - rows % micro_batch
    cuts = [*range(0, whole, micro_batch * largest), whole, rows]
    return [(begin, end) for begin, end in zip(cuts, cuts[1:]) if end > begin]


def coalesced_step(
    step: Callable[[Any], torch.Tensor], model: nn.Module, inputs: Any, micro_batch: int, factor: int
) -> Tuple[torch.Tensor, int]:
    """(loss, factor) of a batch in chunks of `factor` micro-batches; out of memory halves the factor, also for what follows.

    step(chunk): the stock training_step of some samples, whose loss counts by what they hold of the update. A smaller last
    micro-batch of an epoch is a chunk of its own, as it may be padded otherwise. Under DistributedDataParallel a batch stays one
    chunk: a process that failed could not meet the others.
    """
    rows = int(find_batch_size(inputs))
    alone = not hasattr(model, "no_sync")
    # Gradients of earlier batches of the update are set aside, so that a batch that fails halfway can be computed again.
    parameters = [parameter for parameter in model.parameters() if alone and parameter.grad is not None]
    earlier = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    while True:
        chunks = chunks_of(rows, micro_batch, factor)
        try:
            losses = [step(inputs if len(chunks) == 1 else rows_of(inputs, *chunk)) for chunk in chunks]
            break
        except Exception as error:
            count = -(-chunks[0][1] // micro_batch)
            of_memory = isinstance(error, torch.cuda.OutOfMemoryError) or should_reduce_batch_size(error)
            if not alone or count == 1 or not of_memory:
                raise
            factor = count // 2
        gc.collect()
        torch.cuda.empty_cache()
        model.zero_grad(set_to_none=True)
        logger.warning(
            "out of memory: %d micro-batches at a time instead of %d; the global batch stays as it is", factor, count
        )
    with torch.no_grad():
        for parameter, gradient in zip(parameters, earlier):
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
    return (losses[0] if len(losses) == 1 else torch.stack(losses).sum()), factor
