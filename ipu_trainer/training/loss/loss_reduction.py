"""What a loss does with the samples of a micro-batch: take their mean, add them up, or divide by num_items_in_batch.

Accumulated micro-batches make the update of one large batch only if each counts by what its loss is a mean of: by its samples, or
by its labels, which differ from one micro-batch to the next. Signatures do not tell: many heads of transformers 5 accept
num_items_in_batch and return a mean all the same. So the loss is computed, of a few samples together and of each alone.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Union

import torch
from transformers.trainer_pt_utils import find_batch_size

from ipu_trainer.errors import UserError
from ipu_trainer.training.batches import rows_of

PER_ITEM, SUM, MEAN = "per item", "sum", "mean"
SAMPLES, MICRO_BATCHES = "samples", "micro-batches"
# Tensors whose entries say by 1 and 0 which tokens count.
_MASKS = ("attention_mask", "decoder_attention_mask")
# Samples that are computed together and alone; fewer where each has many labels, as its logits are large.
COMPARED, _COMPARED_OF_TOKENS = 8, 4
# Weighings whose error is below this share of the loss cannot be told apart in float32.
_NOISE = 3e-6
_ROUNDING = 2e-4  # in half precision or TF32

Loss = Callable[[Dict[str, Any], Optional[torch.Tensor]], float]
Count = Union[int, float, torch.Tensor]


class NeitherMeanNorSum(UserError):
    """The loss of several samples does not follow from the losses of each."""


class LossNotComparable(UserError):
    """The samples at hand do not show what the loss does with them."""


@dataclass(frozen=True)
class LossReduction:
    """kind: PER_ITEM (a sum divided by the num_items_in_batch that it is given), SUM, or MEAN.

    over: what a mean is taken of. SAMPLES, MICRO_BATCHES (each counts as one), or the name of the tensor whose entries count:
    labels other than ignore_index (without the first of each row where shifted), numbers other than NaN, ones of a mask.
    """

    kind: str
    over: str = SAMPLES
    shifted: bool = False
    ignore_index: int = -100

    def items(self, inputs: Mapping[str, Any], micro_batch: int) -> Count:
        """How many items a batch holds: a number, or a scalar tensor on the labels' device, so that no host waits for a GPU."""
        if not self._counts_entries_of(inputs):
            rows = int(find_batch_size(inputs))
            return -(-rows // micro_batch) if self.over == MICRO_BATCHES else rows
        return self._counted(inputs).sum()

    def items_of_each(self, inputs: Mapping[str, Any], num_micro_batches: int) -> torch.Tensor:
        """items() of each micro-batch of whole ones, float32 (num_micro_batches,)."""
        if self._counts_entries_of(inputs):
            return self._counted(inputs).reshape(num_micro_batches, -1).sum(1).float()
        each = 1 if self.over == MICRO_BATCHES else int(find_batch_size(inputs)) // num_micro_batches
        return torch.full((num_micro_batches,), float(each))

    def _counts_entries_of(self, inputs: Mapping[str, Any]) -> bool:
        return self.over not in (SAMPLES, MICRO_BATCHES) and self.over in inputs

    def _counted(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Which entries count, of the shape of the tensor that holds them, without the first of each row where shifted."""
        values: torch.Tensor = inputs[self.over]
        if self.shifted:
            values = values[..., 1:]
        if self.over in _MASKS:
            return values.ne(0)
        return values.isfinite() if values.is_floating_point() else values.ne(self.ignore_index)

    @property
    def counts_labels(self) -> bool:
        """Whether micro-batches of as many samples may count differently."""
        return self.kind == MEAN and self.over not in (SAMPLES, MICRO_BATCHES)

    def describe(self) -> str:
        if self.kind == PER_ITEM:
            return "a sum divided by num_items_in_batch"
        if self.kind == SUM:
            return "a sum over samples"
        if self.over in (SAMPLES, MICRO_BATCHES):
            return f"a mean over {self.over}"
        return (
            f"a mean over the {'shifted ' if self.shifted else ''}entries of {self.over}, by which micro-batches count"
        )


def find_loss_reduction(
    compute: Loss,
    inputs: Mapping[str, Any],
    label_names: Sequence[str],
    is_given_items: bool,
    prefers_shifted: bool,
    ignore_index: int = -100,
    rounds: bool = False,
) -> LossReduction:
    """The reduction of the loss compute(inputs, num_items_in_batch or None), which must not change anything.

    is_given_items: whether training passes it the number of labels of an update. prefers_shifted: which of two weighings to take
    that the samples do not tell apart. rounds: whether it is computed in half precision or TF32. Raises NeitherMeanNorSum,
    LossNotComparable, and what `compute` or cutting a batch raises.
    """
    tolerance, noise = (2e-2, _ROUNDING) if rounds else (1e-4, _NOISE)
    candidates = list(_candidates(inputs, label_names, prefers_shifted, ignore_index))
    of_tokens = any(reduction.over not in (SAMPLES, *_MASKS) for reduction in candidates[:1])
    sample = rows_of(inputs, 0, min(int(find_batch_size(inputs)), _COMPARED_OF_TOKENS if of_tokens else COMPARED))
    items: Optional[torch.Tensor] = None
    if is_given_items:
        device = next(value.device for value in sample.values() if torch.is_tensor(value))
        items = torch.tensor(max(1, int(candidates[0].items(sample, 1))), device=device)
        once, twice = compute(sample, items), compute(sample, 2 * items)
        if once and abs(twice - once / 2) <= tolerance * abs(once):
            return replace(candidates[0], kind=PER_ITEM)
        if abs(twice - once) > tolerance * abs(once):
            raise NeitherMeanNorSum(
                f"of the same samples it is {once:.6g} with num_items_in_batch {int(items)} and {twice:.6g} with twice that: only "
                "a part of it is divided by the number"
            )
    candidates.append(LossReduction(SUM))
    errors = _errors(compute, sample, items, candidates, tolerance)
    uneven = _unevenly_labelled(sample, candidates[0])
    if uneven is not None:
        with contextlib.suppress(IndexError, RuntimeError, ValueError):  # of labels that this loss does not ignore
            further = _errors(compute, uneven, items, candidates, tolerance)
            errors = [max(both) for both in zip(errors, further)]
    if min(errors) > tolerance:
        raise NeitherMeanNorSum("what it is a mean of depends on how many labels are ignored")
    near = max(3 * min(errors), noise)
    return next(reduction for reduction, error in zip(candidates, errors) if error <= near)


def _candidates(
    inputs: Mapping[str, Any], label_names: Sequence[str], prefers_shifted: bool, ignore_index: int
) -> Iterator[LossReduction]:
    """Weighings to try: of several that fit alike, the first is taken."""
    labels = [name for name in label_names if torch.is_tensor(inputs.get(name)) and inputs[name].dim()]
    tokens = [name for name in labels if inputs[name].dim() > 1 and not inputs[name].is_floating_point()]
    for name in tokens:
        for shifted in (prefers_shifted, not prefers_shifted):
            yield LossReduction(MEAN, name, shifted, ignore_index)
    yield LossReduction(MEAN, SAMPLES)
    for name in labels:
        if name not in tokens:
            yield LossReduction(MEAN, name, False, ignore_index)
    for name in _MASKS:
        if torch.is_tensor(inputs.get(name)) and inputs[name].dim() > 1:
            yield LossReduction(MEAN, name)
            yield LossReduction(MEAN, name, shifted=True)


def _errors(
    compute: Loss,
    sample: Dict[str, Any],
    items: Optional[torch.Tensor],
    candidates: List[LossReduction],
    tolerance: float,
) -> List[float]:
    """How far the loss of the samples is from what each candidate makes of the losses of each, relative to the loss.

    Raises NeitherMeanNorSum where it is far from all, and LossNotComparable where it is no number.
    """
    parts = _parts(sample, candidates[0])
    whole, alone = compute(sample, items), [compute(part, items) for part in parts]
    if not math.isfinite(whole):
        raise LossNotComparable(f"it is {whole} for the first samples")
    scale = max(abs(value) for value in (whole, *alone) if math.isfinite(value)) or 1.0
    errors = []
    for reduction in candidates:
        counts = [float(reduction.items(part, 1)) for part in parts]
        expected = sum(count * value for count, value in zip(counts, alone) if count)
        if reduction.kind == MEAN:
            expected /= max(1.0, sum(counts))
        says_something = reduction.kind == MEAN or len(parts) > 1
        error = abs(expected - whole) / scale
        errors.append(error if says_something and math.isfinite(error) else math.inf)
    if min(errors) > tolerance:
        shown = ", ".join(f"{value:.6g}" for value in alone)
        raise NeitherMeanNorSum(f"{len(parts)} samples alone have {shown}, and together {whole:.6g}")
    return errors


def _parts(sample: Dict[str, Any], first: LossReduction) -> List[Dict[str, Any]]:
    """Each sample alone; of one sample with many labels, each half of them."""
    rows = int(find_batch_size(sample))
    if rows > 1 or first.over == SAMPLES:
        return [rows_of(sample, row, row + 1) for row in range(rows)]
    labels = sample[first.over]
    counted = labels.ne(first.ignore_index)
    early = counted & (counted.cumsum(-1) * 2 <= counted.sum(-1, keepdim=True))
    halves = (early, counted & ~early)
    return [{**sample, first.over: labels.masked_fill(~half, first.ignore_index)} for half in halves]


def _unevenly_labelled(sample: Dict[str, Any], first: LossReduction) -> Optional[Dict[str, Any]]:
    """The samples, the first with the earlier half of its labels, so that weighings differ which all had the same number for.

    None where that cannot be. On a GPU only where labels are ignored anyway, since a loss that does not know ignore_index would end
    the process there.
    """
    if first.over in (SAMPLES, *_MASKS) or int(find_batch_size(sample)) == 1:
        return None
    labels: torch.Tensor = sample[first.over]
    if labels.device.type != "cpu" and not bool(labels.eq(first.ignore_index).any()):
        return None
    counted = labels[0].ne(first.ignore_index)
    later = counted & (counted.cumsum(-1) * 2 > counted.sum(-1, keepdim=True))
    if not bool((counted & ~later).any()):
        return None
    labels = labels.clone()
    labels[0] = labels[0].masked_fill(later, first.ignore_index)
    return {**sample, first.over: labels}
