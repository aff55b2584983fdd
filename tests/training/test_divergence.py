"""A training that turns NaN stops at its step; an evaluation changes no weight that follows it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_trainer import Pictures, arguments
from tiny_models import vit
from transformers import TrainerCallback

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.training.loss.divergence import DivergenceGuard, LossStreak, first_not_finite, stop_when_diverged
from ipu_trainer.training.state.checkpoints import WritesDigests, why_not_whole


def trainer_of(folder, dropout=0.0, **changes):
    model = vit()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
    args = arguments(folder, per_device_train_batch_size=4, per_device_eval_batch_size=4, **changes)
    data = Pictures(multi_label=False)
    data.labels = data.labels % 2
    return IPUTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize("backend", ["host", "simulated"])
def test_a_training_that_turns_nan_stops_at_its_step_and_keeps_the_checkpoint_before(tmp_path, backend):
    trainer = trainer_of(
        tmp_path, backend=backend, max_steps=9, save_strategy="steps", save_steps=2, learning_rate=0.01
    )
    stop_when_diverged(trainer)
    trainer.add_callback(WritesDigests())
    collate = trainer.data_collator

    def broken_after_three(samples):
        broken_after_three.calls += 1
        batch = collate(samples)
        return {
            **batch,
            "pixel_values": batch["pixel_values"] * (float("nan") if broken_after_three.calls > 3 else 1.0),
        }

    broken_after_three.calls = 0
    trainer.data_collator = broken_after_three
    with pytest.raises(ValueError, match=r"the loss is NaN or infinite since step 4 of 9.*checkpoint-2 is from before"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert why_not_whole(tmp_path / "checkpoint-2") is None


def test_weights_are_read_before_a_checkpoint_and_named(tmp_path):
    class Overflow(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            model.classifier.weight.data[0, 0] = float("inf")

    trainer = trainer_of(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=0.01)
    trainer.add_callback(Overflow())
    stop_when_diverged(trainer)
    with pytest.raises(ValueError, match="classifier.weight has weights that are NaN or infinite after step 1 of 2"):
        trainer.train()
    assert not list(Path(tmp_path).glob("checkpoint-*"))


def test_a_skipped_step_of_float16_is_no_divergence():
    streak = LossStreak()
    for step, is_finite in enumerate([True, False, False, True, False], start=1):
        streak = streak.after(step, is_finite)
    assert streak == (1, 5)
    assert first_not_finite({"a": torch.ones(2), "b": torch.tensor([1, 2])}) is None
    assert first_not_finite({"a": torch.ones(2), "b": torch.tensor([float("nan")])}) == "b"


@pytest.mark.parametrize(("fp16", "on_device", "stops"), [(True, False, 32), (True, True, 1), (False, False, 1)])
def test_a_loss_scale_is_halved_as_often_as_it_can_be(tmp_path, fp16, on_device, stops):
    class Trainer:
        args = type("Args", (), {"fp16": fp16, "output_dir": str(tmp_path), "learning_rate": 1.0})
        backend = type("Backend", (), {"has_executors": on_device})
        state = type("State", (), {"global_step": 0, "max_steps": 99})
        sum_over_processes = staticmethod(lambda counts: counts)

    guard, control = DivergenceGuard(Trainer), type("Control", (), {"should_log": True, "should_save": False})
    for _ in range(stops - 1):
        guard.note_loss(torch.tensor(float("inf")))
        guard.on_step_end(None, None, control)
    guard.note_loss(torch.tensor(float("inf")))
    with pytest.raises(ValueError, match="since step 1 of 99"):
        guard.on_step_end(None, None, control)


def test_evaluation_changes_no_weight_that_follows(tmp_path):
    """Dropout and the order of samples are drawn from the generators that a data loader of an evaluation draws from too."""
    names = {item.name for item in dataclasses.fields(IPUTrainingArguments)}
    more = {"eval_strategy": "steps", "eval_steps": 1, **({"eval_on_start": True} if "eval_on_start" in names else {})}
    weights = []
    for changes in ({"eval_strategy": "no"}, more):
        trainer = trainer_of(tmp_path, 0.3, max_steps=6, **changes)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
