"""Hidden states between layers in bfloat16 under autocast: in which dtype layers read and hand on, and what else stays."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.training import compat
from ipu_trainer.training.layers import layer_stacks
from ipu_trainer.training.residual_stream import bfloat16_residual_stream

IDS = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(0))


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config), torch.tensor([0, 1, 0])


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config), IDS


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
    model, labels = gpt2()
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
        model.eval()
        assert dtypes_read(model, labels)[0] == [torch.float32] * 2
    model.train()
    read, again, _ = dtypes_read(model, labels)
    assert read == [torch.float32] * 2
    assert again == loss


@pytest.mark.filterwarnings("ignore:.*is_autocast_cpu_enabled.*")
def test_without_autocast_nothing_is_rounded():
    model, labels = bert()
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
