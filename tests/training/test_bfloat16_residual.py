"""Hidden states between layers in bfloat16 under autocast: in which dtype layers read and hand on, and what else stays."""

import pytest
import torch
from tiny_models import bert, gpt2

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.acceleration.accelerated_training import bfloat16_residual_stream
from ipu_trainer.training.layers import layer_stacks

IDS = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(0))


def dtypes_read(model, labels):
    """What each layer reads, and the loss and gradients of a step under autocast on the CPU."""
    read = []
    handles = [
        layer.register_forward_hook(lambda module, given, output: read.append(given[0].dtype))
        for _, layers in layer_stacks(model)
        for layer in layers
    ]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=labels).loss
    loss.backward()
    for handle in handles:
        handle.remove()
    return read, float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.*is_autocast_cpu_enabled.*")
def test_layers_read_bfloat16_and_end_near_what_float32_gives():
    model, labels = gpt2(), IDS
    model.train()
    read, loss, gradients = dtypes_read(model, labels)
    assert read == [torch.float32] * 2
    with bfloat16_residual_stream(model) as stacks:
        assert stacks == 1
        read, rounded_loss, rounded = dtypes_read(model, labels)
    assert read == [torch.bfloat16] * 2
    assert rounded_loss == pytest.approx(loss, abs=0.02)
    for name, gradient in gradients.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], gradient, rtol=0.1, atol=0.02, msg=name)
    with bfloat16_residual_stream(model):
        model.eval()
        assert dtypes_read(model, labels)[0] == [torch.float32] * 2
    model.train()
    read, again, _ = dtypes_read(model, labels)
    assert read == [torch.float32] * 2
    assert again == loss


@pytest.mark.filterwarnings("ignore:.*is_autocast_cpu_enabled.*")
def test_without_autocast_nothing_is_rounded():
    model, labels = bert(), torch.tensor([0, 1, 0])
    plain = model(input_ids=IDS, labels=labels).loss
    with bfloat16_residual_stream(model):
        assert torch.equal(model(input_ids=IDS, labels=labels).loss, plain)


def test_it_is_refused_where_it_does_nothing(tmp_path):
    for values in ({"bf16": True}, {"backend": "simulated"}):
        with pytest.raises(ValueError, match="bf16_residual is for bf16 on a GPU"):
            IPUTrainingArguments(
                str(tmp_path), bf16_residual=True, report_to=[], **{compat.field_name("use_cpu"): True, **values}
            )


def test_a_model_without_layers_is_refused(tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def forward(self, x, labels):
            return {"loss": ((self.linear(x) - labels) ** 2).mean()}

    args = IPUTrainingArguments(str(tmp_path), report_to=[], max_steps=1, **{compat.field_name("use_cpu"): True})
    args.bf16_residual = True  # as on a GPU
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    with pytest.raises(ValueError, match="bf16_residual: Plain has no repeated layers"):
        IPUTrainer(Plain(), args, ipu_config=IPUConfig(), train_dataset=data).train()
