"""A trainer that was pickled goes on as the one that it was: before a training, after one, and within one."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import vit
from transformers import TrainerCallback

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.backends.base import Backend
from ipu_trainer.compat import transformers_versions as compat

PIXELS = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SAMPLES = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(PIXELS)]


def by_cloudpickle(trainer):
    cloudpickle = pytest.importorskip("cloudpickle")
    return pickle.loads(cloudpickle.dumps(trainer))


def by_pickle(trainer):
    return pickle.loads(pickle.dumps(trainer))


def trainer_of(folder, backend, kind=IPUTrainer, model=None, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False, "data_seed": 5,
        "backend": backend, "lr_scheduler_type": "constant_with_warmup",  # 4.29 goes on with the schedule of the first training
    }  # fmt: skip
    args = IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))
    config = IPUConfig(gradient_accumulation_steps=2, device_iterations=2)
    return kind(model or vit(), args, train_dataset=SAMPLES, eval_dataset=SAMPLES, ipu_config=config)


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def assert_equal(one, other):
    assert all(torch.equal(one[name], value) for name, value in other.items())


def go_on(trainer):
    trainer.train()
    return weights(trainer), trainer.evaluate()["eval_loss"]


BACKENDS = ("host", "simulated")


@pytest.mark.parametrize("way", [by_pickle, by_cloudpickle, copy.deepcopy])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_trains_to_the_same_weights_before_and_after_a_training(tmp_path, backend, way):
    """After a training it takes the moments of AdamW with it, from the device too."""
    trainer = trainer_of(tmp_path, backend, **({"ema_decay": 0.9} if backend == "host" else {}))
    fresh = way(trainer)
    trainer.train()
    first = weights(trainer)
    fresh.train()
    assert_equal(first, weights(fresh))
    trainer.evaluate()
    trained = way(trainer)
    assert trained.model is not trainer.model
    assert_equal(first, weights(trained))
    (one, loss), (other, loss_of_copy) = go_on(trainer), go_on(trained)
    assert_equal(one, other)
    assert any(not torch.equal(first[name], value) for name, value in one.items()) and loss == loss_of_copy


def trained_elsewhere(pickled):
    results = []
    for trainer in pickle.loads(pickled):
        results.append({name: value.numpy() for name, value in go_on(trainer)[0].items()})
    return results


def test_a_spawned_process_trains_on(tmp_path):
    trainers = [trainer_of(tmp_path / backend, backend) for backend in BACKENDS]
    for trainer in trainers:
        trainer.train()
    # As bytes: torch gives processes that it passes tensors to the same memory, and both would train the same weights.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(trained_elsewhere, [pickle.dumps(trainers)])[0]
    for trainer, found in zip(trainers, elsewhere):
        assert_equal(go_on(trainer)[0], {name: torch.from_numpy(value) for name, value in found.items()})


class Copying(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            self.copied = by_pickle(self.trainer)

    def __getstate__(self):
        return {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_pickling_within_a_training_changes_nothing_of_it(tmp_path, backend):
    undisturbed, trainer = (trainer_of(tmp_path / str(copies), backend) for copies in (0, 1))
    undisturbed.train()
    callback = Copying()
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()
    assert_equal(weights(undisturbed), weights(trainer))
    at_step_2 = trainer_of(tmp_path, backend)
    assert callback.copied.state.global_step == 2
    differs = [not torch.equal(value, weights(callback.copied)[name]) for name, value in weights(at_step_2).items()]
    assert any(differs)  # the device's weights came along


class OldStyle(IPUTrainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        self.called = getattr(self, "called", 0) + 1
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_override_of_old_signature_is_the_copys_own(tmp_path, backend):
    """The function that drops today's arguments once held the trainer that was copied."""
    trainer = trainer_of(tmp_path, backend, OldStyle)
    copied = copy.deepcopy(trainer)
    copied.train()
    assert copied.called and not hasattr(trainer, "called")


def test_copying_a_trainer_leaves_the_programs_accelerate_as_it_is(tmp_path):
    in_bfloat16 = trainer_of(tmp_path, "host", bf16=True)
    trainer_of(tmp_path, "host")
    before = dict(AcceleratorState._shared_state)
    copied = copy.deepcopy(in_bfloat16)
    assert dict(AcceleratorState._shared_state) == before
    if hasattr(copied, "accelerator"):  # not in 4.29
        copied._accelerate_state.restore()
        assert copied.accelerator.mixed_precision == "bf16"


def test_a_backend_that_another_machine_lacks_is_named(monkeypatch):
    from ipu_trainer.backends import sdk

    monkeypatch.setattr(sdk, "probe", lambda: sdk.SdkProbe(None, "", None, "poptorch is not installed"))
    pickled = pickle.dumps(Backend("sdk", "asked for", poptorch=torch))
    with pytest.raises(ValueError, match="pickled on a machine with backend sdk, and here poptorch is not installed"):
        pickle.loads(pickled)
