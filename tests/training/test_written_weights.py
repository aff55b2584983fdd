"""What a callback writes into the weights counts on a device as on the host; reading changes nothing."""

import pytest
import torch
from tiny_models import vit
from transformers import TrainerCallback

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.device import written_weights

PIXELS = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(PIXELS)]


def trained(folder, backend, callback, **changes):
    model = vit()
    model.register_buffer("scale", torch.ones(2))
    model.classifier.register_forward_hook(lambda _, inputs, logits: logits * model.scale)
    values = dict(
        per_device_train_batch_size=2, learning_rate=0.05, optim="sgd", max_grad_norm=0.0, report_to=[],
        use_cpu=True, disable_tqdm=True, lr_scheduler_type="linear", **{"save_strategy": "no", "max_steps": 4, **changes},
    )  # fmt: skip
    trainer = IPUTrainer(
        model, IPUTrainingArguments(str(folder), backend=backend, **compat.training_defaults(**values)),
        ipu_config=IPUConfig(layers_per_ipu=(1, 1), gradient_accumulation_steps=4), train_dataset=IMAGES, eval_dataset=IMAGES,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return trainer


class AtStep(TrainerCallback):
    def __init__(self, change, event="on_step_end"):
        self.change = change
        setattr(self, event, self.run)

    def run(self, args, state, control, model=None, **_):
        if state.global_step == 2:
            self.change(model)


def fill(model):
    with torch.no_grad():
        model.classifier.weight.fill_(0.5)


def clamp_data(model):
    for parameter in model.parameters():
        parameter.data.clamp_(-0.01, 0.01)


def exchange_data(model):
    model.classifier.weight.data = torch.full_like(model.classifier.weight, 0.25)


def scale_buffer(model):
    model.scale.mul_(3)


def read(model):
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The weights of a training whose callback does nothing: without and with an evaluation after each step."""
    return [
        trained(tmp_path_factory.mktemp("plain"), "host", TrainerCallback(), **changes).model_on_host().state_dict()
        for changes in ({}, EVALUATED)
    ]


@pytest.mark.parametrize("change", [fill, clamp_data, exchange_data, scale_buffer, read])
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_evaluate"])
def test_weights_that_a_callback_writes_are_those_of_the_next_step(tmp_path, change, event, untouched):
    changes = EVALUATED if event == "on_evaluate" else {}
    models = {
        backend: trained(tmp_path / backend, backend, AtStep(change, event), **changes).model_on_host()
        for backend in ("host", "simulated")
    }
    for (name, value), other in zip(models["host"].state_dict().items(), models["simulated"].state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=1e-6, msg=name)
    plain = untouched[event == "on_evaluate"]
    same = all(torch.equal(value, plain[name]) for name, value in models["host"].state_dict().items())
    assert same == (change is read)


def test_a_checkpoint_holds_what_was_written_before_it(tmp_path):
    class Written(AtStep):
        def on_save(self, args, state, control, model=None, **_):
            self.saved = model.classifier.weight.detach().clone()

    callback = Written(fill)
    trained(tmp_path, "simulated", callback, save_strategy="steps", save_steps=2, max_steps=2)
    assert bool((callback.saved == 0.5).all())


def replace_after_reading(model):
    model.classifier.weight = torch.nn.Parameter(model.classifier.weight.detach() * 2)


def replace_unread(model):
    model.classifier.weight = torch.nn.Parameter(torch.ones(2, 16))


def replace_buffer(model):
    model.scale = torch.full((2,), 3.0)


@pytest.mark.parametrize("replace", [replace_after_reading, replace_unread, replace_buffer])
def test_a_tensor_that_is_put_in_anothers_place_is_refused_by_name(tmp_path, replace):
    with pytest.raises(ValueError, match=r"(classifier.weight|scale) is another tensor.*copy_"):
        trained(tmp_path, "simulated", AtStep(replace))


def test_nothing_is_compared_where_nobody_looks(tmp_path, monkeypatch):
    """Learning rates that change at each step read no weights either."""
    computed = []
    checksum = written_weights._checksum
    monkeypatch.setattr(written_weights, "_checksum", lambda tensor: computed.append(1) or checksum(tensor))

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            self.seen = len(computed)

    callback = Note()
    trained(tmp_path, "simulated", callback)
    assert callback.seen == 0
