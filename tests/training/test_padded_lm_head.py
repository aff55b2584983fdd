"""The padded LM head: the same numbers and gradients, and what is left alone."""

import copy
import io

import pytest
import torch
from tiny_models import bert, gpt2
from torch import nn
from transformers import BertForMaskedLM, T5Config, T5ForConditionalGeneration

from ipu_trainer.training.acceleration.compiled_layers import padded_linear, padded_lm_head

IDS = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(0))
compiles = pytest.mark.skipif(not hasattr(nn.Module, "compile"), reason="torch compiles no modules in place")


def t5():
    torch.manual_seed(0)
    config = T5Config(
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        vocab_size=54,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def loss_logits_and_gradients(model):
    model.zero_grad()
    outputs = model(input_ids=IDS, labels=IDS)
    outputs.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return outputs.loss.detach(), outputs.logits.detach(), gradients


@pytest.mark.parametrize("rows", [1, 8, 63, 64, 65, 1001])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_padded_product_is_the_product(rows, with_bias):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (7, rows))
    bias = torch.randn(rows, generator=generator, dtype=torch.float64) if with_bias else None
    expected = nn.functional.linear(hidden, weight, bias)
    torch.testing.assert_close(padded_linear(hidden, weight, bias), expected, rtol=0, atol=1e-14)


@compiles
@pytest.mark.parametrize("make", [gpt2, lambda: bert(BertForMaskedLM), t5])
def test_a_model_computes_the_same_and_nothing_is_left_behind(make):
    model = make().double().train()
    names = list(model.state_dict())
    loss, logits, gradients = loss_logits_and_gradients(model)
    torch._dynamo.reset()
    with padded_lm_head(model, "aot_eager") as linear:
        assert linear is model.get_output_embeddings()
        assert list(model.state_dict()) == names
        padded_loss, padded_logits, padded = loss_logits_and_gradients(model)
        assert padded_logits.shape == logits.shape
        assert padded_logits.stride(-2) % 64 == 0  # it was the padded product that gave them
    torch.testing.assert_close(padded_loss, loss, rtol=0, atol=1e-13)
    torch.testing.assert_close(padded_logits, logits, rtol=0, atol=1e-13)
    for name, gradient in gradients.items():
        torch.testing.assert_close(padded[name], gradient, rtol=0, atol=1e-13, msg=name)
    assert not any("forward" in part.__dict__ for part in model.modules())


@compiles
def test_models_that_follow_each_other_share_the_compiled_product():
    """A search makes many: none of them may run out of compilations and fall back to slow kernels."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for seed in range(10):
        model = gpt2().train()
        with torch.no_grad():
            model.lm_head.weight.add_(seed)
        with padded_lm_head(model, "aot_eager"):
            model(input_ids=IDS, labels=IDS).loss.backward()
    assert counters["stats"]["unique_graphs"] == 1


@compiles
def test_a_copy_made_meanwhile_computes_with_its_own_weights():
    model = gpt2().double().eval()
    torch._dynamo.reset()
    with padded_lm_head(model, "aot_eager"), torch.no_grad():
        before = model(input_ids=IDS).logits
        copied, stored = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stored)
        copied.lm_head.weight.mul_(2.0)  # tied to the input embeddings, so the copy computes something else altogether
        assert torch.equal(model(input_ids=IDS).logits, before)
        inside = copied(input_ids=IDS).logits
    with torch.no_grad():
        plain = gpt2().double().eval()
        plain.load_state_dict(copied.state_dict())
        torch.testing.assert_close(inside, plain(input_ids=IDS).logits, rtol=0, atol=1e-13)
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False)
        torch.testing.assert_close(loaded(input_ids=IDS).logits, before, rtol=0, atol=1e-13)
        assert loaded.lm_head.forward.__func__ is nn.Linear.forward


class Adapted(nn.Linear):
    pass


def hooked():
    model = gpt2()
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


def adapted():
    model = gpt2()
    model.lm_head = Adapted(16, 50, bias=False)
    return model


def replaced():
    model = gpt2()
    model.lm_head.forward = model.lm_head.forward
    return model


@pytest.mark.parametrize("make", [lambda: gpt2(vocab_size=56), hooked, adapted, replaced, lambda: nn.Linear(2, 3)])
def test_what_is_aligned_or_more_than_a_linear_layer_is_left_alone(make):
    model = make()
    before = copy.copy(getattr(model, "lm_head", model).__dict__)
    with padded_lm_head(model) as linear:
        assert linear is None
        assert getattr(model, "lm_head", model).__dict__ == before
    assert getattr(model, "lm_head", model).__dict__ == before
