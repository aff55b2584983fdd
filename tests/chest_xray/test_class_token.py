"""The last layer for the class token alone: the same logits and gradients in fewer operations, and nothing left behind."""

import contextlib
import io

import pytest
import torch
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer
from ipu_trainer.tasks.chest_xray.train import prepare
from ipu_trainer.tasks.recipe.recipe import seeded_model
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 4, "num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INPUTS = {"pixel_values": PIXELS, "labels": torch.tensor([0, 1, 1])}


def vit(**changes):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**CONFIG, **changes})).double().train()


known_layer = pytest.mark.skipif(
    ClassTokenLayer.of(vit()) is None, reason="this version of Transformers builds the layers of a ViT in another way"
)


def loss_and_gradients(model, alone):
    model.zero_grad()
    with ClassTokenLayer.of(model).reading_class_token() if alone else contextlib.nullcontext(None) as used:
        loss = model(**INPUTS).loss
    loss.backward()
    return used, loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@known_layer
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"attn_implementation": "eager"}])
def test_it_is_exact_in_float64_and_leaves_no_trace(changes):
    model = vit(**changes)
    names = list(model.state_dict())
    _, loss, gradients = loss_and_gradients(model, False)
    used, alone_loss, alone = loss_and_gradients(model, True)
    assert used
    tolerance = 1e-8 if model.config._attn_implementation == "eager" else 1e-13  # eager takes its softmax in float32
    torch.testing.assert_close(alone_loss, loss, rtol=0, atol=tolerance)
    for name, gradient in gradients.items():
        torch.testing.assert_close(alone[name], gradient, rtol=0, atol=tolerance, msg=name)
    assert list(model.state_dict()) == names
    assert not any("forward" in part.__dict__ for part in model.modules())


@known_layer
def test_the_last_layer_computes_one_query_no_keys_and_one_token_of_the_rest(monkeypatch):
    model = vit()
    layer, tokens = model.vit.layers[-1], {}
    weights = {
        "query": layer.attention.q_proj.weight,
        "key": layer.attention.k_proj.weight,
        "mlp": layer.mlp.fc1.weight,
    }
    linear = torch.nn.functional.linear

    def counted(hidden, weight, bias=None):
        tokens.update({name: hidden.shape[1] for name, known in weights.items() if known is weight})
        return linear(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    with ClassTokenLayer.of(model).reading_class_token():
        assert model(**INPUTS).logits.shape == (3, 2)
    assert tokens == {"query": 1, "mlp": 1}
    tokens.clear()
    model(**INPUTS)
    assert tokens == {"query": 17, "key": 17, "mlp": 17}


@known_layer
@pytest.mark.parametrize("why", ["dropout", "adapter"])
def test_keys_are_made_where_they_are_more_than_a_product(why):
    model = vit(attention_probs_dropout_prob=0.3) if why == "dropout" else vit()
    attention = model.vit.layers[-1].attention
    if why == "adapter":

        class Doubled(torch.nn.Linear):
            def forward(self, given):
                return 2 * super().forward(given)

        attention.k_proj.__class__ = Doubled
    last = ClassTokenLayer.of(model)
    read = torch.nn.functional.scaled_dot_product_attention
    keys = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *given, **named: keys.append(given[1]) or read(*given, **named),
        )
        with last.reading_class_token() as used:
            model(**INPUTS)
    assert used and keys[-1].shape == (3, 2, 17, 8)
    if why == "adapter":
        _, loss, gradients = loss_and_gradients(model, False)
        _, alone_loss, alone = loss_and_gradients(model, True)
        torch.testing.assert_close(alone_loss, loss, rtol=0, atol=1e-13)
        torch.testing.assert_close(alone, gradients, rtol=0, atol=1e-13)


@known_layer
def test_who_reads_more_than_logits_gets_it():
    model = vit()
    seen = []
    handle = model.vit.layernorm.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    last = ClassTokenLayer.of(model)
    with last.reading_class_token() as used:
        model(**INPUTS)
    assert not used
    assert seen == [(3, 17, 16)]
    handle.remove()
    model.config.output_hidden_states = True
    with last.reading_class_token() as used:
        assert model(**INPUTS).hidden_states[-1].shape == (3, 17, 16)
    assert not used


@known_layer
def test_checkpointed_layers_are_left_alone_since_backward_computes_them_again():
    model = vit()
    _, loss, gradients = loss_and_gradients(model, False)
    model.gradient_checkpointing_enable()
    used, checkpointed_loss, checkpointed = loss_and_gradients(model, True)
    assert not used
    torch.testing.assert_close(checkpointed_loss, loss, rtol=0, atol=1e-14)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-13, msg=name)


@known_layer
def test_skipped_samples_skip_the_class_token_alike():
    model = vit()
    add_drop_path(model, 0.5)
    torch.manual_seed(1)
    _, loss, gradients = loss_and_gradients(model, False)
    torch.manual_seed(1)
    used, alone_loss, alone = loss_and_gradients(model, True)
    assert used
    torch.testing.assert_close(alone_loss, loss, rtol=0, atol=1e-14)
    for name, gradient in gradients.items():
        torch.testing.assert_close(alone[name], gradient, rtol=0, atol=1e-13, msg=name)


def test_heads_that_read_other_tokens_are_left_alone():
    assert ClassTokenLayer.of(DeiTForImageClassification(DeiTConfig(**CONFIG))) is None
    assert ClassTokenLayer.of(torch.nn.Linear(2, 2)) is None

    class Mean(ViTForImageClassification):
        pass

    assert ClassTokenLayer.of(Mean(ViTConfig(**CONFIG))) is None


def trained(prepared, phantoms, folder, monkeypatch, alone):
    words = [
        "--data", str(prepared), "--model", str(phantoms / "model"), "--output", str(folder), "--num_train_epochs", "2",
        "--per_device_train_batch_size", "16", "--precision", "fp32", "--disable_tqdm", "true", "--optim", "sgd",
        "--" + compat.field_name("use_cpu"), "true", "--drop_path", "0.2",
    ]  # fmt: skip
    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        if not alone:
            patch.setattr(ClassTokenLayer, "of", lambda _: None)
        job = prepare(words)
        trainer = job.trainer(model=seeded_model(job))
        trainer.train()
    return trainer


@known_layer
def test_a_training_ends_in_the_same_weights(prepared, phantoms, tmp_path, monkeypatch):
    whole = trained(prepared, phantoms, tmp_path / "whole", monkeypatch, False)
    alone = trained(prepared, phantoms, tmp_path / "alone", monkeypatch, True)
    assert alone._shortcuts().last_layer is not None
    for (name, value), other in zip(whole.model.state_dict().items(), alone.model.state_dict().values()):
        torch.testing.assert_close(other, value, rtol=0, atol=1e-6, msg=name)
