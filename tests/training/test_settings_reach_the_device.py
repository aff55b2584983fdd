"""What a run is asked for reaches the executor and the logs: each of these would otherwise be lost without a sound."""

import pytest
import torch
from test_on_device import PIPELINE, Samples, arguments, tiny, trainer_of, weights
from transformers import TrainerCallback

import ipu_trainer.simulator as poptorch
from ipu_trainer import IPUConfig, IPUTrainer

ONE_IPU = IPUConfig(gradient_accumulation_steps=4)


class InTraining(TrainerCallback):
    """What an executor holds while a training runs, taken from the live run after its first step."""

    def __init__(self, look):
        self.look, self.found = look, None

    def on_step_end(self, args, state, control, **_):
        if self.found is None:
            self.found = self.look(self.trainer)


def seen(trainer, look):
    callback = InTraining(look)
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()
    return callback.found


@pytest.mark.parametrize("half", [False, True])
def test_half_trains_weights_in_float16(tmp_path, half):
    trainer = trainer_of("vit", tmp_path, "simulated", ONE_IPU, half=half, max_steps=2)
    types = seen(trainer, lambda one: {value.dtype for value in one.execution.current_run._trainer.model.parameters()})
    assert types == {torch.float16 if half else torch.float32}
    is_rounded = [torch.equal(value, value.half().float()) for value in weights(trainer).values()]
    assert all(is_rounded) == half


class TinyLoss(IPUTrainer):
    """Its gradients are below the smallest number of float16."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(**inputs)
        loss = outputs["loss"] * 2.0**-14 * 2.0**-13
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("scale", [1.0, 2.0**15])
def test_loss_scaling_saves_gradients_that_float16_loses(tmp_path, scale):
    trainer = trainer_of(
        "vit", tmp_path, "simulated", ONE_IPU, TinyLoss, half=True, loss_scaling=scale, max_steps=2, weight_decay=0.0,
        optim="sgd", learning_rate=2.0**25, warmup_steps=0, max_grad_norm=0.0,
    )  # fmt: skip
    before = {name: value.half().float() for name, value in weights(trainer).items()}
    trainer.train()
    moved = [not torch.equal(before[name], value) for name, value in weights(trainer).items()]
    assert any(moved) == (scale > 1)


def test_automatic_loss_scaling_is_the_configurations_and_sums_in_float16(tmp_path):
    config = ONE_IPU.updated(auto_loss_scaling=True)
    trainer = trainer_of("vit", tmp_path, "simulated", config, half=True, max_steps=1)
    options, accumulated = seen(
        trainer,
        lambda one: (dict(one.execution.current_run._trainer.options._Popart.options), one.optimizer.device.accum_type),
    )
    assert options["automaticLossScalingSettings.enabled"] is True and accumulated == torch.float16


@pytest.mark.parametrize("asked", [False, True])
def test_recomputation_reaches_one_ipu_as_an_option_and_a_pipeline_as_checkpoints(tmp_path, monkeypatch, asked):
    one = trainer_of("gpt2", tmp_path / "one", "simulated", ONE_IPU, max_steps=1, gradient_checkpointing=asked)
    options = seen(one, lambda trainer: dict(trainer.execution.current_run._trainer.options._Popart.options))
    standard = int(one.backend.popart.RecomputationType.Standard)
    assert (options.get("autoRecomputation") == standard) == asked
    checkpoints = []
    stock = poptorch.recomputationCheckpoint
    monkeypatch.setattr(poptorch, "recomputationCheckpoint", lambda *a: (checkpoints.append(a), stock(*a))[1])
    trainer_of("gpt2", tmp_path, "simulated", PIPELINE, max_steps=1, gradient_checkpointing=asked).train()
    assert bool(checkpoints) == asked


def test_a_poptorch_lamb_makes_the_updates_of_lamb(tmp_path):
    """Those of an executor without a trainer: the data set is one micro-batch."""
    samples, updates = Samples("vit", 8), 3
    model = tiny("vit")
    trainer = IPUTrainer(
        model=model,
        args=arguments(tmp_path, backend="simulated", per_device_train_batch_size=8, num_train_epochs=updates, seed=0),
        train_dataset=samples,
        ipu_config=IPUConfig(),
        optimizers=(poptorch.optim.LAMB(model.parameters(), lr=1e-2), None),
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda _: 1.0)
    trainer.train()
    alone = tiny("vit").train()
    executor = poptorch.trainingModel(alone, poptorch.Options(), poptorch.optim.LAMB(alone.parameters(), lr=1e-2))
    for _ in range(updates):
        executor(**samples.columns)
    executor.destroy()
    before = tiny("vit").state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], value, rtol=0, atol=2e-5, msg=name)
    assert any(float((before[name] - value).abs().max()) > 1e-2 for name, value in alone.state_dict().items())


def test_weight_updates_are_logged_where_a_host_step_is_several(tmp_path):
    config = ONE_IPU.updated(device_iterations=2, gradient_accumulation_steps=2)
    trainer = trainer_of("vit", tmp_path, "simulated", config, max_steps=3)
    trainer.train()
    logged = [(entry["step"], entry["weight_updates"]) for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [(1, 2), (2, 4), (3, 6)]
    single = trainer_of("vit", tmp_path, "simulated", ONE_IPU, max_steps=1)
    single.train()
    assert not any("weight_updates" in entry for entry in single.state.log_history)


def test_rates_are_those_of_the_work_without_the_time_of_compiling(tmp_path, monkeypatch):
    """The compiling takes 100 s longer than the training does, by the clocks that both are measured with."""
    from ipu_trainer.training.device.executors import DeviceRun

    stock = DeviceRun._compile

    def slow(run, executor, given):
        stock(run, executor, given)
        run.compile_seconds += 100.0

    monkeypatch.setattr(DeviceRun, "_compile", slow)
    runtime = {}

    class Clock(IPUTrainer):
        def log(self, logs, *rest, **named):
            if "train_runtime" in logs:
                logs["train_runtime"] += 100.0
                for name in ("train_samples_per_second", "train_steps_per_second"):
                    logs[name] *= (logs["train_runtime"] - 100.0) / logs["train_runtime"]
                runtime.update(logs)
            super().log(logs, *rest, **named)

    trainer = trainer_of("vit", tmp_path, "simulated", ONE_IPU, Clock, max_steps=4)
    trainer.train()
    last = trainer.state.log_history[-1]
    assert runtime["train_samples_per_second"] < 1  # with the compiling
    assert last["train_samples_per_second"] > 10 * runtime["train_samples_per_second"]
    assert last["train_steps_per_second"] > 10 * runtime["train_steps_per_second"]


def test_generators_of_the_device_go_on_where_it_compiles_again(tmp_path):
    """Dropout of the second shape would draw the numbers of the first step once more."""

    class TwoShapes(IPUTrainer):
        states = None

        def training_step(self, model, inputs, *rest):
            length = 6 if self.states is None else 8
            self.states = self.states or []
            loss = super().training_step(model, {name: value[:, :length] for name, value in inputs.items()}, *rest)
            self.states.append(self.execution.current_run.rng_state)
            return loss

    trainer = trainer_of(
        "gpt2", tmp_path, "simulated", ONE_IPU, TwoShapes, model=tiny("gpt2", resid_pdrop=0.5), max_steps=2
    )
    trainer.train()
    first, second = trainer.states
    alone = trainer_of(
        "gpt2", tmp_path, "simulated", ONE_IPU, TwoShapes, model=tiny("gpt2", resid_pdrop=0.5), max_steps=1
    )
    alone.states = []  # the second shape at once
    alone.train()
    assert first != second and alone.states[0] != second


def test_the_host_gets_a_twin_in_float32_with_the_newest_weights_of_a_half_run(tmp_path):
    trainer = trainer_of("vit", tmp_path, "simulated", ONE_IPU, half=True, max_steps=2, warmup_steps=0)
    start = {name: value.half().float() for name, value in weights(trainer).items()}

    def twin_of(one):
        return {name: value.clone() for name, value in one.model_on_host().named_parameters()}

    found = seen(trainer, twin_of)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any(not torch.equal(start[name], value) for name, value in found.items())


@pytest.mark.parametrize("updates", [1, 2])
def test_the_loss_of_output_mode_sum_is_the_mean_of_the_micro_batches(tmp_path, updates):
    found = {}
    for mode in ("sum", "all"):
        config = ONE_IPU.updated(output_mode=mode, device_iterations=updates, replication_factor=2)
        trainer = trainer_of("vit", tmp_path / mode, "simulated", config, per_device_train_batch_size=1, max_steps=2)
        trainer.train()
        found[mode] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found["sum"] == pytest.approx(found["all"], abs=1e-4)
