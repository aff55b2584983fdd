"""What a loss does with its samples is found out by computing it, for any numbers of labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.training.device.host_step import LOSS_WEIGHT, NUM_ITEMS, host_step
from ipu_trainer.training.loss.loss_reduction import (
    MEAN,
    PER_ITEM,
    SAMPLES,
    SUM,
    LossNotComparable,
    LossReduction,
    NeitherMeanNorSum,
    find_loss_reduction,
)


def batch(counts, length=8):
    """One row a sample, with so many labels at its end, and a number for each label that the losses below reduce."""
    drawn = torch.Generator().manual_seed(sum(counts))
    labels = torch.full((len(counts), length), -100)
    for row, count in enumerate(counts):
        labels[row, length - count :] = 3
    return {"labels": labels, "each": torch.rand(len(counts), length, generator=drawn) + 0.5}


def counted(inputs):
    return torch.where(inputs["labels"] != -100, inputs["each"], torch.zeros(()))


def shifted(inputs):
    return {name: value[:, 1:] for name, value in inputs.items()}


LOSSES = {
    "mean over labels": lambda inputs, items: counted(inputs).sum() / inputs["labels"].ne(-100).sum(),
    "mean over shifted labels": lambda inputs, items: (
        counted(shifted(inputs)).sum() / inputs["labels"][:, 1:].ne(-100).sum()
    ),
    "mean over samples": lambda inputs, items: inputs["each"].mean(),
    "sum": lambda inputs, items: counted(inputs).sum(),
    "per item": lambda inputs, items: counted(inputs).sum() / items,
}
EXPECTED = {
    "mean over labels": LossReduction(MEAN, "labels"),
    "mean over shifted labels": LossReduction(MEAN, "labels", shifted=True),
    "mean over samples": LossReduction(MEAN, SAMPLES),
    "sum": LossReduction(SUM),
    "per item": LossReduction(PER_ITEM, "labels"),
}


def found(name, inputs, **named):
    return find_loss_reduction(
        lambda part, items: float(LOSSES[name](part, items)), inputs, ["labels"], is_given_items=True,
        prefers_shifted=False, **named,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LOSSES)), st.lists(st.integers(2, 7), min_size=2, max_size=8))
def test_the_reduction_is_found_whatever_samples_come_first(name, counts):
    """Also where all of them hold as many labels, and would not tell the weighings apart."""
    expected = EXPECTED[name]
    if name == "mean over shifted labels":  # no sample has a label at its first token: to shift changes nothing
        assert found(name, batch(counts)) in (expected, EXPECTED["mean over labels"])
        assert found(name, batch([8, *counts])) == expected
        return
    assert found(name, batch(counts)) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(LOSSES)),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 2),
    st.data(),
)
def test_a_host_step_weighs_its_micro_batches_to_the_loss_of_each_whole_update(
    name, micro_batch, accumulation, replicas, iterations, data
):
    geometry = BatchGeometry(micro_batch, accumulation, replicas, iterations)
    rows = geometry.samples_per_host_step
    inputs = batch(data.draw(st.lists(st.integers(2, 7), min_size=rows, max_size=rows)))
    step = host_step(
        inputs,
        geometry,
        EXPECTED[name],
        lambda batches: sum(int(part["labels"].ne(-100).sum()) for part in batches),
        lambda counts: counts,
    )
    pieces, in_update = rows // micro_batch, accumulation * replicas
    losses = []
    for piece in range(pieces):
        part = {key: value[piece * micro_batch : (piece + 1) * micro_batch] for key, value in inputs.items()}
        items = step.inputs[NUM_ITEMS][piece] if NUM_ITEMS in step.inputs else None
        loss = LOSSES[name](part, items) * (in_update if items is not None else 1)
        losses.append(loss * step.inputs[LOSS_WEIGHT][piece] if LOSS_WEIGHT in step.inputs else loss)
    by_update = torch.stack(losses).reshape(iterations, in_update).mean(1)  # what the device does
    for update in range(iterations):
        whole = {key: value.chunk(iterations)[update] for key, value in inputs.items()}
        expected = LOSSES[name](whole, whole["labels"].ne(-100).sum())
        torch.testing.assert_close(by_update[update], expected, rtol=1e-5, atol=1e-6)
    if step.shares is not None:  # what is logged of the last micro-batches is their own mean
        last = {key: value[-micro_batch:] for key, value in inputs.items()}
        own = LOSSES[name](last, last["labels"].ne(-100).sum())
        torch.testing.assert_close(losses[-1] / step.shares[-1], own, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(LOSSES)), st.integers(0, 1000))
def test_the_reduction_is_found_through_rounding(name, seed):
    drawn = torch.Generator().manual_seed(seed)

    def rounded(part, items):
        return float(LOSSES[name](part, items)) * (1 + 5e-5 * float(torch.randn((), generator=drawn).clamp(-1, 1)))

    reduction = find_loss_reduction(
        rounded, batch([8, 2, 5, 7]), ["labels"], True, name == "mean over shifted labels", rounds=True
    )
    expected = EXPECTED[name]
    assert (reduction.kind, reduction.over) == (expected.kind, expected.over)


def test_what_compares_samples_or_divides_a_part_alone_is_neither():
    inputs = batch([3, 5, 8, 2])
    compare = {
        "contrast": lambda part, items: float(part["each"].std(unbiased=False)),
        "auxiliary": lambda part, items: float(counted(part).sum() / items + part["each"].mean()),
    }
    for loss in compare.values():
        with pytest.raises(NeitherMeanNorSum, match="together|only a part"):
            find_loss_reduction(loss, inputs, ["labels"], is_given_items=True, prefers_shifted=False)


def test_a_loss_that_is_not_finite_says_nothing():
    with pytest.raises(LossNotComparable, match="nan"):
        find_loss_reduction(lambda *_: float("nan"), batch([3, 5]), ["labels"], False, False)


def test_one_sample_is_compared_with_the_halves_of_its_labels():
    assert found("mean over labels", batch([7])) == EXPECTED["mean over labels"]
    assert found("sum", batch([7])) == EXPECTED["sum"]
