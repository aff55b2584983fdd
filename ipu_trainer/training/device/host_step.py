"""What the training executor is given for one host step: the samples, and what the loss of each micro-batch counts.

A device takes the mean over accumulation and replicas, so a loss that is a mean over labels is multiplied by what its micro-batch
holds of them, relative to the others. Micro-batches come in the order device iteration, accumulation, replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.training.loss.loss_reduction import MEAN, MICRO_BATCHES, PER_ITEM, LossReduction

# Name of the input that carries the number of labels of a weight update, one entry a micro-batch.
NUM_ITEMS = "num_items_in_batch"
# Name of the input that carries what the loss of each micro-batch is multiplied by.
LOSS_WEIGHT = "micro_batch_loss_weight"
# num_items_in_batch of a list of batches as Trainer counts it, or None.
Counting = Callable[[List[Dict[str, Any]]], Any]


@dataclass(frozen=True)
class HostStep:
    """inputs: what the executor takes. shares: float32 (micro-batches,), what each loss is of the mean that is logged."""

    inputs: Dict[str, Any]
    shares: Optional[torch.Tensor] = None


def host_step(
    given: Mapping[str, Any],
    geometry: BatchGeometry,
    reduction: LossReduction,
    count_labels: Counting,
    sum_over_processes: Callable[[torch.Tensor], torch.Tensor],
    num_processes: int = 1,
    fills_up: bool = False,
) -> HostStep:
    """A host step of `given`, whose tensors have one row a sample; geometry has this process's replicas.

    sum_over_processes: of numbers of labels. fills_up: the samples may be too few, which takes geometry.device_iterations 1.
    """
    inputs, used = dict(given), num_samples(given)
    if fills_up:
        inputs = _rows(given, 0, usable_samples(used, geometry), used)
        used = num_samples(inputs)
    if reduction.kind == PER_ITEM:
        inputs.update(_num_items(inputs, geometry, count_labels))
    step = geometry.samples_per_host_step
    copies, times = 0, 1
    if fills_up and used < step:
        inputs, copies, times = _filled(inputs, geometry)
    elif used != step:
        return HostStep(inputs)  # the executor refuses it by name
    pieces = step // geometry.micro_batch
    items = reduction.items_of_each(inputs, pieces).cpu()
    items[:copies] = 0.0
    items[-1] /= 1 if reduction.over == MICRO_BATCHES else times
    if reduction.kind == MEAN:
        total = items.reshape(geometry.device_iterations, -1).sum(-1)
        if reduction.counts_labels:
            total = sum_over_processes(total) / num_processes
        shares = _shares(items, geometry, total)
        if bool((shares != 1).any()) or reduction.counts_labels or fills_up:
            inputs[LOSS_WEIGHT] = shares
        return HostStep(inputs, shares)
    in_update = pieces // geometry.device_iterations
    if reduction.kind == PER_ITEM and (NUM_ITEMS in inputs or in_update == 1):
        if fills_up:
            inputs[LOSS_WEIGHT] = (torch.arange(pieces) >= copies).float()
        if fills_up and NUM_ITEMS in inputs:  # samples that are repeated are divided by that many more labels
            inputs[NUM_ITEMS][-1] *= times
        return HostStep(inputs, _shares(items, geometry))
    weights = torch.full((pieces,), float(in_update * num_processes))
    weights[:copies] = 0.0
    weights[-1] /= times
    return HostStep({**inputs, LOSS_WEIGHT: weights})


def _num_items(inputs: Dict[str, Any], geometry: BatchGeometry, count: Counting) -> Dict[str, Any]:
    """Labels of each weight update, for every micro-batch of a host step: float32 (micro-batches,); nothing if not counted."""
    updates = geometry.device_iterations
    rows = num_samples(inputs)
    size = -(-rows // updates)
    counts = [count([_rows(inputs, begin, begin + size, rows)]) for begin in range(0, rows, size)]
    if any(counted is None for counted in counts):
        return {}
    each = geometry.samples_per_host_step // geometry.micro_batch // updates
    return {NUM_ITEMS: torch.tensor([float(counted) for counted in counts]).repeat_interleave(each)}


def _rows(inputs: Mapping[str, Any], begin: int, end: int, samples: int) -> Dict[str, Any]:
    return {name: value[begin:end] if has_rows(value, samples) else value for name, value in inputs.items()}


def _shares(items: torch.Tensor, geometry: BatchGeometry, total: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Items relative to the mean of their update, (micro-batches,): 1 where all hold the same."""
    by_update = items.reshape(geometry.device_iterations, -1)
    total = by_update.sum(-1) if total is None else total
    return (by_update * by_update.shape[1] / total.clamp(min=1).unsqueeze(-1)).reshape(-1)


def usable_samples(samples: int, geometry: BatchGeometry) -> int:
    """How many of the samples of a last batch can be trained on exactly: whole micro-batches, and of what is left as
    many as divide a micro-batch, which then holds them several times."""
    micro_batch = geometry.micro_batch
    rest = samples % micro_batch
    used = next((size for size in range(rest, 0, -1) if micro_batch % size == 0), 0)
    return samples - rest + used


def epoch_warnings(num_samples: int, geometry: BatchGeometry, fills_up: bool) -> List[str]:
    """What a user should know of an epoch whose samples are not whole host steps.

    Raises UserError where it has no host step at all.
    """
    plan, step = geometry.epoch(num_samples, "pad" if fills_up else "drop"), geometry.samples_per_host_step
    left_out = num_samples % step - usable_samples(num_samples % step, geometry) if fills_up else plan.samples_dropped
    warnings = []
    if num_samples < step:
        warnings.append(
            f"{num_samples} samples are fewer than the {step} of one host step ({geometry.describe()}): every epoch is one "
            "weight update of these"
        )
    if left_out:
        warnings.append(
            f"{num_samples} samples are not whole host steps of {step} ({geometry.describe()}): {left_out} are left out of "
            "each epoch, other ones each time when shuffled"
        )
    return warnings


def _filled(given: Mapping[str, Any], geometry: BatchGeometry) -> Tuple[Dict[str, Any], int, int]:
    """A host step of one weight update from usable_samples() samples: (inputs, micro-batches that are copies, times).

    Copies of the last micro-batch come first. The last micro-batch holds its samples several `times` where they do not fill it.
    """
    assert geometry.device_iterations == 1
    micro_batch, pieces = geometry.micro_batch, geometry.gradient_accumulation * geometry.replicas
    samples = num_samples(given)
    whole, rest = divmod(samples, micro_batch)
    rows = list(range(whole * micro_batch)) + [whole * micro_batch + i % rest for i in range(micro_batch) if rest]
    copies = pieces - len(rows) // micro_batch
    order = torch.tensor(rows[-micro_batch:] * copies + rows)
    filled = {
        name: value[order] if name != NUM_ITEMS and has_rows(value, samples) else value for name, value in given.items()
    }
    return filled, copies, micro_batch // rest if rest else 1


def num_samples(given: Mapping[str, Any]) -> int:
    """Rows of the batch's tensors."""
    return max(tensor.shape[0] for _, tensor in tensors(given) if tensor.dim())


def has_rows(value: Any, samples: int) -> bool:
    """Whether dimension 0 of the value runs over the samples."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == samples


def tensors(given: Mapping[str, Any]) -> Iterator[Tuple[str, torch.Tensor]]:
    """Names and tensors of the samples."""
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and name not in (NUM_ITEMS, LOSS_WEIGHT):
            yield name, value
