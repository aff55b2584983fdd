"""One update depends on its samples alone: 1 x 8, 2 x 4 and 8 x 1 take the same step, whatever the loss is."""

import sys

import pytest
import torch
from heads import HEADS, head_of, samples_of
from transformers import Trainer

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat


def step(folder, head, backend, micro_batch, accumulation, trainer_class=IPUTrainer, data=None, **changes):
    """(what one update of SGD changes in each parameter, the loss that is logged)."""
    model = head_of(head)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    output_mode = changes.pop("output_mode", "all")
    values = dict(
        per_device_train_batch_size=micro_batch, learning_rate=0.5, optim="sgd", max_grad_norm=0.0, report_to=[],
        lr_scheduler_type="constant", save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True, compile="off",
        **{"host_micro_batch_size": "micro_batch", "max_steps": 1, **changes},
    )  # fmt: skip
    trainer = trainer_class(
        model=model,
        args=IPUTrainingArguments(output_dir=str(folder), backend=backend, **compat.training_defaults(**values)),
        ipu_config=IPUConfig(layers_per_ipu=(-1,), gradient_accumulation_steps=accumulation, output_mode=output_mode),
        train_dataset=samples_of(head) if data is None else data,
    )
    trainer.train()
    after = dict(trainer.model_on_host().named_parameters())
    changed = {name: after[name].detach().cpu() - value for name, value in before.items()}
    return changed, next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def difference(one, other):
    """Norm of what differs, relative to the whole step."""
    apart = torch.stack([(one[name] - other[name]).norm() for name in one]).norm()
    return float(apart / torch.stack([value.norm() for value in one.values()]).norm())


@pytest.mark.parametrize("head", [name for name in HEADS if name != "CLIPModel"])
def test_a_head_takes_the_same_step_however_its_samples_are_cut(tmp_path, head):
    expected, loss = step(tmp_path, head, "host", 8, 1)
    for backend, micro_batch, changes in (
        ("host", 1, {}),
        ("host", 2, {"host_micro_batch_size": "auto"}),
        ("simulated", 1, {}),
    ):
        got, logged = step(tmp_path, head, backend, micro_batch, 8 // micro_batch, **changes)
        assert difference(expected, got) < 1e-4, (backend, micro_batch)
        assert logged == pytest.approx(loss, rel=1e-4), (backend, micro_batch)


class Contrastive(IPUTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(**inputs, return_loss=True)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_a_loss_that_compares_the_samples_of_a_batch_is_refused_by_name(tmp_path):
    words = r"the loss of CLIPModel \(by Contrastive.compute_loss\) is neither a mean nor a sum.*accumulation 8"
    for backend in ("host", "simulated"):
        with pytest.raises(ValueError, match=words):
            step(tmp_path, "CLIPModel", backend, 1, 8, Contrastive)
    step(tmp_path, "CLIPModel", "host", 8, 1, Contrastive)


class PerSample(IPUTrainer):
    """Focal loss, with today's signature."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        chance = outputs.logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        loss = (-((1 - chance.exp()) ** 2) * chance).mean()
        return (loss, outputs) if return_outputs else loss


class Summed(IPUTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="sum")


class OldSignature(IPUTrainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


class OverTheMask(IPUTrainer):
    """A mean over the tokens that attention_mask names, as distillation takes it."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        mask = inputs["attention_mask"]
        logits = model(input_ids=inputs["input_ids"], attention_mask=mask).logits
        return ((logits**2).mean(-1) * mask).sum() / mask.sum()


def padded(head):
    return [
        {**sample, "attention_mask": (torch.arange(8) < 8 - number % 5).long()}
        for number, sample in enumerate(samples_of(head))
    ]


OWN = {
    "mean over samples": (PerSample, "ViTForImageClassification", samples_of),
    "sum": (Summed, "ViTForImageClassification", samples_of),
    "mean over labels": (OldSignature, "BertForTokenClassification", samples_of),
    "mean over a mask": (OverTheMask, "BertForTokenClassification", padded),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("backend", ["host", "simulated"])
def test_an_own_loss_takes_the_same_step_however_its_samples_are_cut(tmp_path, name, backend):
    cls, head, make = OWN[name]
    expected, loss = step(tmp_path, head, "host", 8, 1, cls, make(head))
    for micro_batch in (1, 2):
        got, logged = step(tmp_path, head, backend, micro_batch, 8 // micro_batch, cls, make(head))
        assert difference(expected, got) < 1e-5
        assert logged == pytest.approx(loss, rel=1e-5)


@pytest.mark.skipif(not hasattr(Trainer, "get_batch_samples"), reason="this transformers has no compute_loss_func")
@pytest.mark.parametrize("backend", ["host", "simulated"])
@pytest.mark.parametrize("divides", [False, True])
def test_a_loss_function_may_divide_by_the_number_of_items_or_take_the_mean(tmp_path, backend, divides):
    def loss_of(outputs, labels, num_items_in_batch=None):
        loss = torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), reduction="sum")
        return loss / (num_items_in_batch if divides else labels.ne(-100).sum())

    class WithFunction(IPUTrainer):
        def __init__(self, *given, **named):
            super().__init__(*given, compute_loss_func=loss_of, **named)

    head = "BertForTokenClassification"
    expected, loss = step(tmp_path, head, "host", 8, 1, WithFunction)
    got, logged = step(tmp_path, head, backend, 1, 8, WithFunction)
    assert difference(expected, got) < 1e-5
    assert logged == pytest.approx(loss, rel=1e-5)


def test_a_model_that_is_made_anew_may_have_another_loss(tmp_path):
    """As model_init(trial) makes one of the same class."""
    made = iter(["sum", "mean"])

    def model_init():
        model = head_of("HubertForCTC")
        model.config.ctc_loss_reduction = next(made, "mean")
        return model

    trainer = IPUTrainer(
        model_init=model_init, args=IPUTrainingArguments(str(tmp_path), gradient_accumulation_steps=4, per_device_train_batch_size=2),
        train_dataset=samples_of("HubertForCTC"),
    )  # fmt: skip
    assert "loss: a sum over samples" in trainer.batch_table()
    trainer.model = trainer.call_model_init()
    assert "loss: a mean over samples" in trainer.batch_table()


def test_what_a_loss_does_is_found_out_without_changing_anything(tmp_path):
    model = head_of("GPT2LMHeadModel")
    model.register_buffer("seen", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, _: (module.seen.add_(1), None)[1])
    trainer = IPUTrainer(
        model, IPUTrainingArguments(str(tmp_path), gradient_accumulation_steps=4, per_device_train_batch_size=2, use_cpu=True),
        train_dataset=samples_of("GPT2LMHeadModel"),
    )  # fmt: skip
    model.train()
    state = torch.get_rng_state()
    table = trainer.batch_table()
    words = (
        "a sum divided by num_items_in_batch" if hasattr(Trainer, "get_batch_samples") else "a mean over the shifted"
    )
    assert f"loss: {words}" in table
    assert float(model.seen) == 0 and model.training and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("head", ["BertForMaskedLM", "T5ForConditionalGeneration"])
def test_a_micro_batch_without_any_label_is_none_of_the_update(tmp_path, head):
    """The mean over no labels is NaN."""
    data = samples_of(head)
    data[3]["labels"] = torch.full_like(data[3]["labels"], -100)
    expected, loss = step(tmp_path, head, "host", 8, 1, data=data)
    for backend in ("host", "simulated"):
        got, logged = step(tmp_path, head, backend, 1, 8, data=data)
        assert difference(expected, got) < 1e-4
        assert logged == pytest.approx(loss, rel=1e-4)


# On a device shapes are fixed: of a rest of 3 samples 2 fill a micro-batch of 4, so that 7 samples are not all trained on.
@pytest.mark.parametrize(("backend", "rows"), [("host", 7), ("host", 6), ("simulated", 6)])
@pytest.mark.parametrize(
    "head", ["BertForSequenceClassification", "BertForMaskedLM", "HubertForCTC", "GPT2LMHeadModel"]
)
def test_an_update_of_fewer_samples_is_the_one_of_these_samples(tmp_path, backend, head, rows):
    """Of micro-batches of 4, the last holds 3 or 2 samples: it counts by them."""
    if not hasattr(Trainer, "get_batch_samples") and backend == "host":
        pytest.skip("4.29's loop carries what is left into the next epoch")
    data = samples_of(head)[:rows]
    expected, loss = step(tmp_path, head, "host", 8, 1, data=data)
    got, logged = step(tmp_path, head, backend, 4, 2, data=data)
    assert difference(expected, got) < 1e-4
    assert logged == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("head", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_what_is_logged_of_the_last_micro_batch_is_the_mean_over_its_labels(tmp_path, head):
    """With output_mode="final": once it was scaled as a part of the update's sum, and swung from 0.4 to 14."""
    last = samples_of(head)[3:4]
    data = [{**sample, "labels": torch.where(torch.arange(8) < 2 * number, torch.tensor(-100), sample["labels"])}
            for number, sample in enumerate([*samples_of(head)[:3], *last])]  # fmt: skip
    _, alone = step(tmp_path, head, "simulated", 1, 1, data=data[3:], output_mode="final")

    class InOrder(IPUTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    _, logged = step(tmp_path, head, "simulated", 1, 4, InOrder, data, output_mode="final")
    assert logged == pytest.approx(alone, rel=1e-5)


class Breaking(IPUTrainer):
    """Its loss is a number until the step that `breaks_at` names."""

    loss_is_scaled_for_ga, breaks_at = False, 0

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        factor = 1.0 if self.state.global_step < self.breaks_at else float("nan")
        return (model(inputs["pixel_values"]).logits ** 2).sum() * factor


@pytest.mark.parametrize("backend", ["host", "simulated"])
def test_a_loss_that_is_not_a_number_is_logged_as_such(tmp_path, backend):
    _, logged = step(tmp_path, "ViTForImageClassification", backend, 2, 2, Breaking)
    assert logged != logged


@pytest.mark.parametrize("breaks_at", [0, 2])
def test_a_filter_of_losses_never_logs_a_better_one_than_was_seen(tmp_path, breaks_at):
    """Trainer's own adds the mean of the window, which of no number is 0.0."""
    made = []

    class Noted(Breaking):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.breaks_at = breaks_at
            made.append(self)

    step(tmp_path, "ViTForImageClassification", "host", 2, 2, Noted, logging_nan_inf_filter=True, max_steps=4)
    entries = [entry for entry in made[0].state.log_history if "loss" in entry]
    assert [entry.get("non_finite_losses") for entry in entries] == [None] * breaks_at + [2] * (4 - breaks_at)
    losses = [entry["loss"] for entry in entries]
    assert losses[breaks_at:] == [losses[1] if breaks_at else sys.float_info.max] * (4 - breaks_at)
    assert made[0].state.log_history[-1]["train_loss"] != made[0].state.log_history[-1]["train_loss"]
