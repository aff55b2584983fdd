"""Logits that a step does not read stay in half precision; outputs that may be read are float32."""

import pytest
import torch
from accelerate.utils import operations
from tiny_models import gpt2
from transformers import Trainer

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.acceleration.accelerated_training import reads_only_loss, skip_logits_upcast

ROWS = torch.randint(3, 50, (16, 8), generator=torch.Generator().manual_seed(0))
prepares = pytest.mark.skipif(
    not hasattr(Trainer, "create_accelerator_and_postprocess"), reason="transformers does without accelerate's autocast"
)


def trainer_of(folder, trainer_class=IPUTrainer, model=None, named=None, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True,
        "bf16": True, "backend": "host", "dataloader_pin_memory": False, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "learning_rate": 1e-2, **changes,
    }  # fmt: skip
    args = IPUTrainingArguments(**compat.training_defaults(**values))
    samples = [{"input_ids": row, "labels": row} for row in ROWS]
    return trainer_class(gpt2() if model is None else model, args, train_dataset=samples, **(named or {}))


@pytest.fixture
def converted(monkeypatch):
    """Shapes of what accelerate copies to float32."""
    shapes = []
    recursively_apply = operations.recursively_apply

    def watch(function, data, *positional, **named):
        if named.get("test_type") is not None and torch.is_tensor(data) and data.dtype == torch.bfloat16:
            shapes.append(tuple(data.shape))
        return recursively_apply(function, data, *positional, **named)

    monkeypatch.setattr(operations, "recursively_apply", watch)
    return shapes


def own_loss(outputs, labels, num_items_in_batch=None):
    assert outputs.logits.dtype == torch.float32
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class OwnLoss(IPUTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(**inputs)
        assert outputs.logits.dtype == torch.float32
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@prepares
def test_a_training_copies_no_logits_and_ends_in_the_same_weights(tmp_path, converted, monkeypatch):
    logits = (4, 8, 50)
    ours = trainer_of(tmp_path / "ours")
    ours.train()
    assert logits not in converted
    monkeypatch.setattr("ipu_trainer.training.acceleration.accelerated_training.reads_only_loss", lambda *_: False)
    plain = trainer_of(tmp_path / "plain")
    plain.train()
    assert converted.count(logits) == 3
    for name, value in plain.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value)
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, plain)]
    assert losses[0] == losses[1]


def test_evaluation_gives_float32(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert trainer.predict(trainer.train_dataset).predictions.dtype == "float32"


@prepares
def test_who_reads_more_than_the_loss_gets_float32(tmp_path):
    def hooked():
        model = gpt2()

        def hook(module, given, outputs):
            assert outputs.logits.dtype == torch.float32

        model.register_forward_hook(hook)
        return model

    cases = [trainer_of(tmp_path, OwnLoss), trainer_of(tmp_path, model=hooked())]
    cases.append(trainer_of(tmp_path, label_smoothing_factor=0.1))
    if hasattr(Trainer, "get_batch_samples"):
        cases.append(trainer_of(tmp_path, named={"compute_loss_func": own_loss}))
    replaced = trainer_of(tmp_path)
    replaced.compute_loss = OwnLoss.compute_loss.__get__(replaced)
    for trainer in [*cases, replaced]:
        assert not reads_only_loss(trainer, trainer.model)
        trainer.train()
    assert reads_only_loss(trainer_of(tmp_path), gpt2())


def test_outputs_without_a_loss_and_after_an_error_are_converted_as_ever():
    convert = operations.convert_to_fp32
    half = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="in a step"), skip_logits_upcast():
        assert operations.convert_to_fp32({"logits": half})["logits"].dtype == torch.float32
        assert operations.convert_to_fp32((half, half))[1].dtype == torch.float32
        outputs = operations.convert_to_fp32({"loss": half, "logits": half})
        assert (outputs["loss"].dtype, outputs["logits"].dtype) == (torch.float32, torch.bfloat16)
        raise RuntimeError("in a step")
    assert operations.convert_to_fp32 is convert
