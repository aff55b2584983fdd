"""Coalesced micro-batches: the updates of single ones in fewer passes, and one by one where that is not the same."""

import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import bert, gpt2
from torch import nn
from torch.utils.data import IterableDataset, SequentialSampler
from transformers import (
    BertForMaskedLM,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)
from two_processes import call_in_two

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.training import coalescing
from ipu_trainer.training.coalescing import divisors_down, largest_that_fits, why_not_by_size
from ipu_trainer.training.host.coalesced_batches import MicroBatches, chunks_of

RANDOM = torch.Generator().manual_seed(0)
PIXELS = torch.randn(64, 3, 16, 16, generator=RANDOM)
IDS = torch.randint(3, 50, (64, 10), generator=RANDOM)
IMAGES = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(PIXELS)]
SENTENCES = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(IDS)]
counts_items = hasattr(Trainer, "get_batch_samples")


def texts():
    """Rows of which different numbers of tokens count."""
    rows = []
    for index, row in enumerate(IDS):
        labels = row.clone()
        labels[: index % 7] = -100
        rows.append({"input_ids": row, "labels": labels})
    return rows


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16,
                  patch_size=8, num_labels=2)
    )  # fmt: skip


def vit_without_dropout():
    model = vit()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


class WithBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def forward(self, pixel_values, labels=None):
        logits = self.layers(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class WithOwnStatistics(nn.Module):
    """Compares samples of a micro-batch, without telling anyone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(768, 2)

    def forward(self, pixel_values, labels=None):
        hidden = pixel_values.flatten(1)
        logits = self.linear(hidden - 0.5 * hidden.mean(dim=0))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer_of(
    folder, model, data, coalesce, micro_batch=2, accumulation=8, trainer_class=IPUTrainer, config=None, **changes
):
    values = {
        "output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": micro_batch,
        "learning_rate": 1e-2, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True,
        "dataloader_pin_memory": False, "backend": "host", "logging_steps": 1, "host_micro_batch_size": "auto" if coalesce else "micro_batch", "optim": "sgd",
        "save_safetensors": True,
    }  # fmt: skip
    args = IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))
    config = config or IPUConfig(gradient_accumulation_steps=accumulation)
    return trainer_class(model, args, train_dataset=data, ipu_config=config)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Counting(IPUTrainer):
    """Keeps the sizes of its passes, those of the comparison before the first update apart."""

    @property
    def in_loop(self):
        coalescing = self.execution.coalescing
        return coalescing is not None and coalescing.reason != "compared"

    def training_step(self, model, inputs, *more, **named):
        if self.in_loop:
            self.passes.append(len(inputs["labels"]))
        return super().training_step(model, inputs, *more, **named)

    def training_loop(self, loop):
        self.passes = []
        return super().training_loop(loop)


CASES = {"vit": (vit_without_dropout, IMAGES)}
CASES["gpt2, labels masked"] = (gpt2, texts())
CASES["bert"] = (bert, SENTENCES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("config", [(2, 8, 1), (1, 4, 2)])
def test_coalesced_updates_are_those_of_single_micro_batches(tmp_path, name, config):
    make, data = CASES[name]
    micro_batch, accumulation, replicas = config
    ipu = IPUConfig(gradient_accumulation_steps=accumulation, replication_factor=replicas)
    apart = trainer_of(tmp_path / "a", make(), data, False, micro_batch, config=ipu, trainer_class=Counting)
    apart.train()
    together = trainer_of(tmp_path / "b", make(), data, True, micro_batch, config=ipu, trainer_class=Counting)
    together.train()
    assert set(apart.passes) == {micro_batch}
    assert set(together.passes) == {micro_batch * accumulation * replicas}
    assert together.state.global_step == apart.state.global_step == 2 * 64 // (micro_batch * accumulation * replicas)
    assert losses(together) == pytest.approx(losses(apart), abs=1e-4)
    for (key, value), other in zip(apart.model.state_dict().items(), together.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6, msg=key)


@pytest.mark.skipif(not counts_items, reason="older loops carry what is left into the next epoch")
@pytest.mark.parametrize("largest", [100, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epochs_last_update_counts_each_sample_alike(tmp_path, monkeypatch, largest, drop_last):
    """64 samples are four updates of 14, and one of 8: in passes of 7 micro-batches that is 7 and 1."""
    monkeypatch.setattr(coalescing, "largest_that_fits", lambda *_: largest * 2)
    results = []
    for coalesce in (False, True):
        trainer = trainer_of(
            tmp_path / str(coalesce),
            vit_without_dropout(),
            IMAGES,
            coalesce,
            1,
            14,
            Counting,
            dataloader_drop_last=drop_last,
        )
        trainer.train()
        results.append(trainer)
    apart, together = results
    assert max(together.passes) == (14 if largest == 100 else 7)
    assert together.state.global_step == apart.state.global_step == 10
    assert losses(together) == pytest.approx(losses(apart), abs=1e-4)
    for value, other in zip(apart.model.state_dict().values(), together.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "make, reason",
    [(WithBatchNorm, "batch statistics are those of a micro-batch"), (WithOwnStatistics, "they are not equal")],
)
def test_what_compares_samples_is_computed_one_by_one(tmp_path, make, reason):
    trainer = trainer_of(tmp_path, make(), IMAGES, True, trainer_class=Counting)
    trainer.loss_is_scaled_for_ga = False  # micro-batches are averaged as they are
    table = trainer.batch_table()
    assert "loss: a mean over micro-batches" in table
    assert "coalesced: 1 micro-batches" in table and reason in table
    before = {name: value.clone() for name, value in make().state_dict().items()}
    for name, value in trainer.model.state_dict().items():  # looking changed nothing, running means neither
        assert torch.equal(value, before[name])
    trainer.train()
    assert set(trainer.passes) == {2}


def test_a_loss_that_sums_over_samples_is_coalesced(tmp_path):
    class Sums(Counting):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            outputs = model(**inputs)
            loss = outputs["loss"] * len(inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    trainer = trainer_of(tmp_path, vit(), IMAGES, True, trainer_class=Sums)
    assert "loss: a sum over samples" in trainer.batch_table()
    assert trainer.execution.decide_coalescing().factor == 8


def test_a_mean_over_different_numbers_of_labels_is_coalesced(tmp_path):
    """BERT's masked loss takes num_items_in_batch and returns a mean all the same."""
    trainer = trainer_of(tmp_path, bert(BertForMaskedLM), texts(), True)
    assert "loss: a mean over the entries of labels" in trainer.batch_table()
    assert trainer.execution.decide_coalescing().factor == 8


class InOrder(IPUTrainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class ComparesBright(WithOwnStatistics):
    """Compares samples too, but bright ones alone."""

    def forward(self, pixel_values, labels=None):
        hidden = pixel_values.flatten(1)
        bright = (hidden.mean(dim=1, keepdim=True) > 5).float()
        logits = self.linear(hidden - 0.5 * bright * hidden.mean(dim=0))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_verifying_looks_at_the_whole_first_update(tmp_path):
    """Without it up to eight micro-batches are compared, and here only the tenth says that they are not equal."""
    data = [dict(sample) for sample in IMAGES[:32]]
    data[19]["pixel_values"] = data[19]["pixel_values"] + 10
    decided = {
        verify: trainer_of(
            tmp_path, ComparesBright(), data, True, accumulation=16, trainer_class=InOrder, verify=verify
        ).execution.decide_coalescing()
        for verify in (False, True)
    }
    assert decided[False].factor == 16
    assert "gradients of 8 differ" in decided[False].reason
    assert decided[True].factor == 1
    assert "not equal: gradients of 16 differ" in decided[True].reason
    plain = trainer_of(tmp_path, vit_without_dropout(), data, True, accumulation=16, verify=True)
    assert plain.execution.decide_coalescing().factor == 16
    assert "equal: gradients of 16 differ" in plain.execution.decide_coalescing().reason


def test_verifying_is_refused_where_nothing_is_coalesced(tmp_path):
    for values in ({"host_micro_batch_size": "micro_batch"}, {"backend": "simulated"}):
        with pytest.raises(ValueError, match="verify compares micro-batches that the host computes together"):
            IPUTrainingArguments(str(tmp_path), report_to=[], verify=True, **values)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


def test_rules_that_keep_micro_batches_apart_are_reported(tmp_path):
    class OwnLoader(IPUTrainer):
        def get_train_dataloader(self):
            return super().get_train_dataloader()

    def reason(**given):
        data, trainer_class = given.pop("data", IMAGES), given.pop("trainer_class", IPUTrainer)
        return (
            trainer_of(tmp_path, vit(), data, True, trainer_class=trainer_class, **given)
            .execution.decide_coalescing()
            .reason
        )

    assert "stream" in reason(data=Stream(), max_steps=2)
    assert "get_train_dataloader" in reason(trainer_class=OwnLoader)
    assert "one micro-batch makes an update" in reason(accumulation=1)
    assert "fewer than" in reason(data=IMAGES[:6], accumulation=4)
    assert trainer_of(tmp_path, vit(), IMAGES, False).execution.decide_coalescing().reason == "asked for"
    if hasattr(IPUTrainingArguments, "group_by_length"):
        assert "group_by_length" in reason(group_by_length=True)


def test_looking_ahead_draws_no_random_number_and_keeps_dropout(tmp_path):
    """A coalesced run with dropout shuffles as one of single micro-batches, and resumes to the same weights."""
    trainer = trainer_of(tmp_path, vit(), IMAGES, True)
    state = torch.get_rng_state()
    rates = [part.p for part in trainer.model.modules() if isinstance(part, nn.Dropout)]
    decided = trainer.execution.decide_coalescing()
    assert decided.factor == 8
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.p for part in trainer.model.modules() if isinstance(part, nn.Dropout)] == rates
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.execution.coalescing is None and trainer.args.gradient_accumulation_steps == 1


def test_an_interrupted_coalesced_run_resumes_to_the_same_weights(tmp_path):
    whole = trainer_of(tmp_path / "whole", vit(), IMAGES, True, save_strategy="steps", save_steps=3)
    whole.train()
    saved = tmp_path / "whole" / "checkpoint-3"
    state = json.loads((saved / "trainer_state.json").read_text())
    assert state.get("train_batch_size", 2) == 2
    again = trainer_of(tmp_path / "again", vit(), IMAGES, True, save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=str(saved))
    for value, other in zip(whole.model.state_dict().values(), again.model.state_dict().values()):
        assert torch.equal(value, other)


def test_out_of_memory_makes_passes_smaller_and_keeps_the_global_batch(tmp_path):
    class Small(Counting):
        def training_step(self, model, inputs, *more, **named):
            if self.in_loop and len(inputs["labels"]) > 5:
                raise torch.cuda.OutOfMemoryError("a small GPU")
            return super().training_step(model, inputs, *more, **named)

    small = trainer_of(tmp_path / "small", vit_without_dropout(), IMAGES, True, trainer_class=Small)
    small.train()
    assert set(small.passes) == {4}
    apart = trainer_of(tmp_path / "apart", vit_without_dropout(), IMAGES, False)
    apart.train()
    assert small.state.global_step == apart.state.global_step == 8
    for value, other in zip(apart.model.state_dict().values(), small.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6)

    class Tiny(Small):
        def training_step(self, model, inputs, *more, **named):
            if self.in_loop:
                raise torch.cuda.OutOfMemoryError("no GPU at all")
            return super().training_step(model, inputs, *more, **named)

    with pytest.raises(torch.cuda.OutOfMemoryError):
        trainer_of(tmp_path / "tiny", vit(), IMAGES, True, trainer_class=Tiny).train()


class OneAtATime(Counting):
    """Memory ends at `room` micro-batches from the update `begins` on, halfway through the backward pass."""

    room, begins = 1000, 0

    def compute_loss(self, model, inputs, *more, **named):
        if not self.in_loop:
            return super().compute_loss(model, inputs, *more, **named)
        count = len(inputs["labels"]) // 2
        self.computed.append(count)
        full = self.state.global_step >= self.begins and count > self.room
        found = super().compute_loss(model, inputs, *more, **named)
        if full:  # when the last parameters have their gradients already
            self.hook = next(model.parameters()).register_hook(self.fail)
        return found

    def fail(self, gradient):
        self.hook.remove()
        raise torch.cuda.OutOfMemoryError("a small GPU")

    def training_loop(self, *given):
        self.computed = []
        return super().training_loop(*given)


@pytest.mark.parametrize("passes", [1, 2])
def test_memory_that_ends_later_makes_passes_smaller_where_they_are(tmp_path, monkeypatch, passes):
    """A pass that failed halfway leaves nothing behind, neither of itself nor of the update's earlier passes."""
    monkeypatch.setattr(coalescing, "largest_that_fits", lambda *_: 8 // passes)

    class Later(OneAtATime):
        room, begins = 2, 3

    together = trainer_of(tmp_path / "b", vit_without_dropout(), IMAGES, True, trainer_class=Later)
    together.train()
    assert together.computed[: 3 * passes] == [8 // passes] * 3 * passes
    assert set(together.computed[-8:]) == {2}
    apart = trainer_of(tmp_path / "a", vit_without_dropout(), IMAGES, False)
    apart.train()
    assert together.state.global_step == apart.state.global_step
    assert losses(together) == pytest.approx(losses(apart), abs=1e-4)
    for value, other in zip(apart.model.state_dict().values(), together.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6)


def test_one_micro_batch_that_does_not_fit_is_told_as_it_is(tmp_path):
    class Never(OneAtATime):
        room, begins = 0, 2

    with pytest.raises(torch.cuda.OutOfMemoryError, match="a small GPU"):
        trainer_of(tmp_path, vit(), IMAGES, True, trainer_class=Never).train()


@pytest.mark.skipif(not counts_items, reason="older loops carry what is left into the next epoch")
def test_a_smaller_last_micro_batch_counts_as_a_whole_one_as_in_the_literal_loop(tmp_path):
    """64 samples in micro-batches of 3: five updates of 4, then one micro-batch of 3 and one of a single sample."""
    results = []
    for coalesce in (False, True):
        trainer = trainer_of(tmp_path / str(coalesce), vit_without_dropout(), IMAGES, coalesce, 3, 4, Counting)
        trainer.train()
        results.append(trainer)
    apart, together = results
    assert sorted(set(together.passes)) == [4, 12]
    assert together.state.global_step == apart.state.global_step == 12
    assert losses(together) == pytest.approx(losses(apart), abs=1e-4)
    for value, other in zip(apart.model.state_dict().values(), together.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6)


class Brighter:
    """One random number a micro-batch."""

    def __call__(self, samples):
        factor = 1.0 + random.random()
        return {
            "pixel_values": factor * torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["labels"] for sample in samples]),
        }


def test_a_collator_sees_micro_batches_and_draws_as_for_them(tmp_path):
    results = []
    for coalesce in (False, True):
        trainer = trainer_of(tmp_path / str(coalesce), vit_without_dropout(), IMAGES, coalesce, trainer_class=Counting)
        trainer.data_collator = Brighter()
        trainer.train()
        results.append(trainer)
    apart, together = results
    assert set(together.passes) == {16}
    for value, other in zip(apart.model.state_dict().values(), together.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=2e-6)


def test_micro_batches_of_different_lengths_are_collated_as_one_batch():
    def padded(samples):
        random.random()
        return {"input_ids": nn.utils.rnn.pad_sequence(samples, batch_first=True)}

    samples = [torch.arange(1, 2 + index) for index in range(3)]
    random.seed(0)
    assert MicroBatches(padded, 1)(samples)["input_ids"].tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3]]
    drawn = random.random()
    random.seed(0)
    random.random()
    assert random.random() == drawn  # drawn once, not once more for the first try


class WithMovingAverage(nn.Module):
    """Statistics of its own making, which its loss does not show yet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(768, 2)
        self.register_buffer("average", torch.zeros(768))

    def forward(self, pixel_values, labels=None):
        hidden = pixel_values.flatten(1)
        if self.training:
            self.average.lerp_(hidden.mean(dim=0), 0.1)
        return {"loss": nn.functional.cross_entropy(self.linear(hidden), labels)}


def test_a_model_that_keeps_statistics_in_a_buffer_is_computed_one_by_one(tmp_path):
    trainer = trainer_of(tmp_path, WithMovingAverage(), IMAGES, True)
    decided = trainer.execution.decide_coalescing()
    assert decided.factor == 1 and "changes a buffer of the model (average)" in decided.reason
    assert not trainer.model.average.any()


@pytest.mark.parametrize("weight, factor", [(0.0, 8), (0.5, 1)])
def test_the_ranking_loss_compares_samples_and_cross_entropy_does_not(tmp_path, weight, factor):
    class Findings(IPUTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            outputs = model(pixel_values=inputs["pixel_values"])
            loss = FindingLoss(ranking_weight=weight)(outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    labels = (torch.rand(64, 2, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    data = [{"pixel_values": pixels, "labels": row} for pixels, row in zip(PIXELS, labels)]
    decided = trainer_of(tmp_path, vit(), data, True, trainer_class=Findings).execution.decide_coalescing()
    assert decided.factor == factor, decided.reason


def test_a_weighted_cross_entropy_is_refused_or_averaged_by_micro_batches(tmp_path):
    """It divides by the weights of a pass, so of single samples the weights are lost."""

    class Weighted(IPUTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            labels = inputs["labels"]
            return nn.functional.cross_entropy(
                model(pixel_values=inputs["pixel_values"])["logits"], labels, weight=torch.tensor([1.0, 9.0])
            )

    shuffled = [{**sample, "labels": int(index % 3 == 0)} for index, sample in enumerate(IMAGES)]
    trainer = trainer_of(tmp_path, vit(), shuffled, True, trainer_class=Weighted)
    with pytest.raises(
        ValueError, match="by Weighted.compute_loss.*neither a mean nor a sum.*loss_is_scaled_for_ga = False"
    ):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer.loss_is_scaled_for_ga = False
    decided = trainer.execution.decide_coalescing()
    assert decided.factor == 1 and "not equal" in decided.reason


# Samples of one size, and rows of which different numbers of labels count.
SHARED_OUT = {"vit": (vit_without_dropout, IMAGES), "bert": (lambda: bert(BertForMaskedLM), texts())}


def train_shared_out(folder, together, file):
    """Save for each model the first process' passes, losses and weights."""
    config = IPUConfig(gradient_accumulation_steps=4, replication_factor=2)
    found = {}
    for name, (make, data) in SHARED_OUT.items():
        trainer = trainer_of(folder, make(), data, together, 2, config=config, trainer_class=Counting)
        trainer.train()
        found[name] = trainer.passes, losses(trainer), trainer.model.state_dict()
    if trainer.is_world_process_zero():
        torch.save(found, file)


@pytest.mark.skipif(
    not hasattr(Trainer, "create_accelerator_and_postprocess"),
    reason="this transformers shuffles differently per process",
)
def test_two_processes_coalesce_their_shares_and_update_as_the_loop_of_single_micro_batches(tmp_path):
    train_shared_out(tmp_path, False, tmp_path / "1.pt")
    call_in_two(train_shared_out, tmp_path, True, tmp_path / "2.pt")
    results = [torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt")]
    for name in SHARED_OUT:
        (literal_passes, literal_losses, literal), (passes, found_losses, found) = (result[name] for result in results)
        assert set(literal_passes) == {2} and set(passes) == {8}
        assert found_losses == pytest.approx(literal_losses, abs=1e-4)
        for parameter, value in literal.items():
            torch.testing.assert_close(found[parameter], value, rtol=0, atol=2e-6, msg=f"{name}: {parameter}")


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 40))
def test_chunks_of_a_pass_are_its_samples_in_order_and_no_larger_than_allowed(rows, micro_batch, largest):
    parts = chunks_of(rows, micro_batch, largest)
    assert [place for begin, end in parts for place in range(begin, end)] == list(range(rows))
    assert all(end - begin <= micro_batch * largest for begin, end in parts)
    assert all((end - begin) % micro_batch == 0 for begin, end in parts[:-1])
    # Micro-batches counted part by part are those of the literal loop.
    assert sum(math.ceil((end - begin) / micro_batch) for begin, end in parts) == math.ceil(rows / micro_batch)
    last = parts[-1][1] - parts[-1][0]
    assert last % micro_batch == 0 or last < micro_batch


@given(st.integers(1, 600), st.integers(1, 600))
def test_factors_divide_the_accumulation_and_fall(accumulation, largest):
    found = divisors_down(accumulation, largest)
    assert found == sorted(found, reverse=True)
    assert all(accumulation % factor == 0 and 2 <= factor <= largest for factor in found)
    assert (accumulation in found) == (2 <= accumulation <= largest)


@given(st.integers(0, 10**12), st.integers(0, 10**9))
def test_memory_bounds_the_passes(budget, one):
    count = largest_that_fits(budget, one)
    assert count >= 1
    assert count == 1 or count * max(one, 1) <= budget


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_coalesced_epochs_have_the_samples_and_updates_of_single_micro_batches(
    samples, micro_batch, accumulation, drop_last
):
    for factor in divisors_down(accumulation, accumulation):
        if why_not_by_size(samples, micro_batch, accumulation, factor, drop_last, 1, True):
            continue
        apart_drops = drop_last
        together_drops = drop_last and samples % micro_batch > 0
        literal = samples // micro_batch if apart_drops else math.ceil(samples / micro_batch)
        passes = samples // (micro_batch * factor) if together_drops else math.ceil(samples / (micro_batch * factor))
        seen_literally = min(samples, literal * micro_batch)
        assert seen_literally == min(samples, passes * micro_batch * factor)
        assert math.ceil(literal / accumulation) == math.ceil(passes / (accumulation // factor))


def test_a_run_that_restarts_with_smaller_passes_keeps_the_optimizer_that_was_given(tmp_path, monkeypatch):
    from ipu_trainer.training.host import host_execution

    real = host_execution.coalesced_step

    def small(step, model, inputs, *more):
        if trainer.in_loop and len(inputs["labels"]) > 4:
            raise torch.cuda.OutOfMemoryError("a small GPU")
        return real(step, model, inputs, *more)

    monkeypatch.setattr(host_execution, "coalesced_step", small)
    trainer = trainer_of(tmp_path, vit_without_dropout(), IMAGES, True, trainer_class=Counting)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    still = torch.optim.SGD(trainer.model.parameters(), lr=0.0)  # one that was made again would move the weights
    trainer.optimizer, trainer.lr_scheduler = still, torch.optim.lr_scheduler.LambdaLR(still, lambda _: 1.0)
    trainer.train()
    assert trainer.passes[:2] == [16, 8] and trainer.passes[-1] == 4 and trainer.state.global_step == 8
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_factor_does_not_depend_on_free_memory_and_is_kept_in_checkpoints(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path / "a", vit_without_dropout(), IMAGES, True, save_strategy="steps", save_steps=3)
    trainer.train()
    held = json.loads((tmp_path / "a" / "checkpoint-3" / "coalescing.json").read_text())
    assert held == {"micro_batch": 2, "factor": 8, "chunk": 8}
    assert trainer.execution.describe()["host_micro_batch_size"] == 16
    # A machine that would decide otherwise goes on as the run began.
    monkeypatch.setattr(coalescing, "largest_that_fits", lambda *_: 2)
    again = trainer_of(tmp_path / "b", vit_without_dropout(), IMAGES, True, trainer_class=Counting)
    assert again.execution.describe()["host_micro_batch_size"] == 4
    assert "coalesced: 8 micro-batches in one pass (as in the checkpoint)" in again.batch_table(
        checkpoint=str(tmp_path / "a" / "checkpoint-3")
    )
    described = again.execution.describe(str(tmp_path / "a" / "checkpoint-3"))
    assert described == {"host_micro_batch_size": 16, "reason": "as in the checkpoint"}
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert set(again.passes) == {16}
    for value, other in zip(trainer.model.state_dict().values(), again.model.state_dict().values()):
        assert torch.equal(value, other)


def test_a_checkpoint_of_another_accumulation_is_decided_again(tmp_path):
    trainer_of(tmp_path / "a", vit_without_dropout(), IMAGES, True, save_strategy="steps", save_steps=3).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    assert coalescing.read_coalescing(checkpoint, 2, 16).factor == 8
    assert coalescing.read_coalescing(checkpoint, 2, 4) is None
    assert coalescing.read_coalescing(checkpoint, 1, 8) is None
    assert coalescing.read_coalescing(str(tmp_path), 2, 8) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"micro_batch": 2, "factor": 0, "chunk": 1}', '{"factor": "8"}'])
def test_a_damaged_decision_in_a_checkpoint_is_refused_by_name(tmp_path, damage):
    (tmp_path / "coalescing.json").write_text(damage)
    with pytest.raises(ValueError, match="coalescing.json"):
        coalescing.read_coalescing(str(tmp_path), 2, 8)


@pytest.mark.parametrize("size, passes", [("4", {4}), ("16", {16}), ("2", {2}), ("auto", {16}), ("micro_batch", {2})])
def test_a_host_micro_batch_size_is_the_samples_of_a_pass(tmp_path, size, passes):
    trainer = trainer_of(
        tmp_path, vit_without_dropout(), IMAGES, True, trainer_class=Counting, host_micro_batch_size=size, max_steps=2
    )
    trainer.train()
    assert set(trainer.passes) == passes


@pytest.mark.parametrize(
    "size, model, message",
    [
        (
            "3",
            vit,
            "does not divide an update of 8 micro-batches of 2 samples in each process. Use one of 2, 4, 8, 16, or auto",
        ),
        ("1", vit, "does not divide an update"),
        ("many", vit, "must be auto, micro_batch"),
        ("0", vit, "must be auto, micro_batch"),
        ("8", WithBatchNorm, "computes 4 micro-batches of 2 together, which is not possible here: batch statistics"),
        ("8", WithOwnStatistics, "together they are not equal"),
    ],
)
def test_a_host_micro_batch_size_that_cannot_be_is_refused(tmp_path, size, model, message):
    with pytest.raises(ValueError, match=message):
        trainer = trainer_of(tmp_path, model(), IMAGES, True, host_micro_batch_size=size)
        trainer.loss_is_scaled_for_ga = False
        trainer.train()


def test_old_names_keep_working_with_a_hint(tmp_path):
    with pytest.warns(FutureWarning, match="host_micro_batch_size=auto"):
        args = IPUTrainingArguments(str(tmp_path), report_to=[], fold=False)
    assert args.host_micro_batch_size == "micro_batch"
    with pytest.warns(FutureWarning, match="verify_folding is an old name"):
        assert IPUTrainingArguments(str(tmp_path), report_to=[], verify_folding=True).verify
    with pytest.warns(FutureWarning, match="it gained no time"):
        IPUTrainingArguments(str(tmp_path), report_to=[], fuse_projections=True)


@given(st.integers(0, 10**12), st.integers(0, 10**10))
def test_the_activation_budget_is_a_share_of_the_whole_gpu(gpu_bytes, parameter_bytes):
    budget = coalescing.activation_budget_bytes(gpu_bytes, parameter_bytes)
    assert 0 <= budget <= 0.6 * max(0, gpu_bytes - 3 * parameter_bytes) + 1
    assert coalescing.activation_budget_bytes(None, parameter_bytes) == 2 << 30
