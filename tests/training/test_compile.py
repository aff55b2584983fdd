"""Compiled layers and fused projections: the same numbers, parameters and checkpoints, and nothing left behind."""

import contextlib
import copy
import io

import pytest
import torch
from tiny_models import bert, gpt2, vit
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
)

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.training.acceleration import compiled_layers as module
from ipu_trainer.training.acceleration.choices import choose_compile, describe_acceleration
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers, fused_projections
from ipu_trainer.training.acceleration.precision import Precision, used_precision

IDS = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
compiles = pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch compiles no modules in place")


def bart():
    torch.manual_seed(0)
    config = BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, dropout=0.0,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


CASES = {
    "vit": (vit, {"pixel_values": PIXELS, "labels": torch.tensor([0, 1, 0, 1])}, 2),
    "bert": (bert, {"input_ids": IDS, "labels": torch.tensor([0, 1, 0])}, 2),
    "gpt2": (gpt2, {"input_ids": IDS, "labels": IDS}, 0),
    "bart": (bart, {"input_ids": IDS, "labels": IDS}, 6),  # two encoder layers, two decoder layers with two attentions
}


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_fused_projections_are_exact_in_float64_and_leave_no_trace(name):
    make, inputs, expected = CASES[name]
    model = make().double().train()
    names = list(model.state_dict())
    loss, gradients = loss_and_gradients(model, inputs)
    with fused_projections(model) as count:
        assert count == expected
        assert list(model.state_dict()) == names
        fused_loss, fused = loss_and_gradients(model, inputs)
    assert fused_loss == pytest.approx(float(loss), abs=1e-13)
    assert fused.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(fused[parameter], gradient, rtol=0, atol=1e-13)
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("name", ["vit", "bart"])
def test_a_copy_of_a_fused_model_computes_with_its_own_weights(name):
    make, inputs, _ = CASES[name]
    model = make().double().train()
    with fused_projections(model):
        before = model(**inputs).loss
        copied, stored = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stored)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(1.5)
        assert torch.equal(model(**inputs).loss, before)
        inside = copied(**inputs).loss
    plain = make().double().train()
    plain.load_state_dict(copied.state_dict())
    assert float(inside.detach()) == pytest.approx(float(plain(**inputs).loss.detach()), abs=1e-13)
    assert float(inside.detach()) != pytest.approx(float(before.detach()), abs=1e-6)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert float(loaded(**inputs).loss.detach()) == pytest.approx(float(before.detach()), abs=1e-13)


def test_a_fused_attention_makes_one_product_where_three_were():
    model = vit().train()
    counted = []
    linear = torch.nn.functional.linear

    def count(*given):
        counted.append(1)
        return linear(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", count)
        model(pixel_values=PIXELS.float())
        plain = len(counted)
        counted.clear()
        with fused_projections(model):
            model(pixel_values=PIXELS.float())
    assert plain - len(counted) == 2 * 2


def test_adapters_and_hooked_projections_are_left_alone():
    class Adapted(torch.nn.Linear):
        pass

    model = vit()
    attention = next(part for part in model.modules() if module.projections_of(part))
    first = next(part for name, part in attention.named_children() if name in ("q_proj", "query"))
    handle = first.register_forward_hook(lambda *_: None)
    with fused_projections(model) as count:
        assert count == 1
    handle.remove()
    name = "q_proj" if hasattr(attention, "q_proj") else "query"
    setattr(attention, name, Adapted(16, 16))
    with fused_projections(model) as count:
        assert count == 1


@compiles
@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_compiled_layers_compute_the_same_and_leave_no_trace(name):
    make, inputs, _ = CASES[name]
    model = make().double().train()
    loss, gradients = loss_and_gradients(model, inputs)
    torch._dynamo.reset()
    with fused_projections(model), compiled_layers(model, True, "aot_eager") as count:
        assert count == 2
        compiled_loss, compiled = loss_and_gradients(model, inputs)
    assert compiled_loss == pytest.approx(float(loss), abs=1e-12)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(compiled[parameter], gradient, rtol=0, atol=1e-12)
    assert not any(part._compiled_call_impl for part in model.modules())


@compiles
@pytest.mark.parametrize("device, padded", [("cpu", False), ("meta", True)])
def test_a_vocabulary_is_padded_on_a_gpu_alone(device, padded):
    """A CPU is slower by the padding. Of the meta device only "not a CPU" counts here."""
    model = gpt2().to(device)
    with compiled_layers(model, True, "aot_eager"):
        assert ("forward" in model.lm_head.__dict__) == padded
    assert "forward" not in model.lm_head.__dict__


@compiles
def test_all_layers_share_one_graph():
    """One compilation for twelve layers, not twelve, also where their projections are fused, and one for the embeddings."""
    from torch._dynamo.utils import counters

    model = vit(layers=12).train()
    torch._dynamo.reset()
    counters.clear()
    with fused_projections(model), compiled_layers(model, True, "aot_eager"):
        model(pixel_values=PIXELS.float())
    assert counters["stats"]["unique_graphs"] == 2


def test_layers_are_compiled_on_a_gpu_and_what_cannot_be_is_refused():
    assert choose_compile("auto", "cpu").name == "off"
    assert choose_compile("off", "cuda").name == "off"
    with pytest.raises(ValueError, match="not one of auto, layers, model, off"):
        choose_compile("fast", "cuda")
    if hasattr(torch.nn.Module, "compile"):
        assert choose_compile("auto", "cuda").name == "layers"
        assert choose_compile("auto", "cuda", num_gpus=2).name == "off"
        with pytest.raises(ValueError, match="start one process a GPU"):
            choose_compile("layers", "cuda", num_gpus=2)
        with pytest.raises(ValueError, match="no repeated layers"), compiled_layers(torch.nn.Linear(2, 2), True):
            pass
    else:
        assert choose_compile("auto", "cuda").name == "off"
        with pytest.raises(ValueError, match="compiles no modules in place"):
            choose_compile("layers", "cuda")


def arguments(folder, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "report_to": [], "disable_tqdm": True, "save_strategy": "steps", "save_steps": 3, "use_cpu": True,
        "dataloader_pin_memory": False, "backend": "host", "logging_steps": 1, "save_safetensors": True,
    }  # fmt: skip
    return IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))


def test_a_run_says_what_is_compiled_and_in_which_arithmetic(tmp_path):
    args = arguments(tmp_path)
    assert describe_acceleration(args, False, vit()) == "compile off (it pays on a GPU)"
    assert describe_acceleration(arguments(tmp_path, compile="model"), False, vit()) == "compile model (asked for)"
    assert used_precision(args, False) == Precision(
        "fp32", "a CPU computes in float32 unless --precision bf16 is given"
    )
    assert used_precision(arguments(tmp_path, precision="fp32"), False).reason == "asked for"
    args.bf16 = True  # as --bf16 sets it
    assert used_precision(args, False) == Precision("bf16", "--bf16")


def test_arguments_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="contradicts it"):
        arguments(tmp_path, compile="layers", torch_compile=True)
    with pytest.raises(ValueError, match="poptorch compiles"):
        arguments(tmp_path, compile="layers", backend="simulated")
    with pytest.raises(ValueError, match="not one of"):
        arguments(tmp_path, compile="everything")
    for other in ({"compile": "model"}, {"torch_compile": True}, {"backend": "simulated"}):
        with pytest.raises(ValueError, match="fuse_projections is for the host"):
            arguments(tmp_path, fuse_projections=True, **other)
    assert arguments(tmp_path, torch_compile=True).compile == "model"
    assert arguments(tmp_path, compile="model").torch_compile is True


@compiles
@pytest.mark.parametrize("make", [vit, gpt2])
def test_a_compiled_training_ends_in_the_same_weights_and_plain_checkpoints(tmp_path, monkeypatch, make):
    real = module.compiled_layers
    counts = []

    @contextlib.contextmanager
    def without_inductor(model, required):
        with real(model, required, "aot_eager") as count:
            counts.append(count)
            yield count

    monkeypatch.setattr("ipu_trainer.training.acceleration.accelerated_layers.compiled_layers", without_inductor)
    if make is vit:
        samples = [{"pixel_values": pixels.float(), "labels": i % 2} for i, pixels in enumerate(PIXELS)]
    else:
        samples = [{"input_ids": row, "labels": row} for row in IDS]
    results = {}
    for name in ("off", "layers"):
        model = copy.deepcopy(make())
        trainer = IPUTrainer(model, arguments(tmp_path / name, compile=name), train_dataset=samples)
        trainer.train()
        results[name] = model.state_dict()
        saved = type(model).from_pretrained(tmp_path / name / "checkpoint-3")
        for key, value in saved.state_dict().items():
            assert torch.equal(value, results[name][key])
    assert counts == [2]
    for key, value in results["off"].items():
        torch.testing.assert_close(results["layers"][key], value, rtol=0, atol=1e-4)


@compiles
def test_a_run_resumes_compiled_and_fused_from_a_plain_checkpoint_and_back(tmp_path, monkeypatch):
    """Weights and AdamW's state go from off to layers with one product, and from there to off again."""
    real = module.compiled_layers
    monkeypatch.setattr(
        "ipu_trainer.training.acceleration.accelerated_layers.compiled_layers",
        lambda model, required: real(model, required, "aot_eager"),
    )
    samples = [{"pixel_values": pixels.float(), "labels": i % 2} for i, pixels in enumerate(PIXELS)]

    def train(folder, resume, **changes):
        model = vit()
        values = {"learning_rate": 1e-3, "save_steps": 2, "lr_scheduler_type": "constant", **changes}
        IPUTrainer(model, arguments(folder, **values), train_dataset=samples).train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train(tmp_path / "whole", None, max_steps=6, compile="off")
    parts = tmp_path / "parts"
    fast = {"compile": "layers", "fuse_projections": True}
    train(parts, None, max_steps=2, compile="off")
    train(parts, str(parts / "checkpoint-2"), max_steps=4, **fast)
    resumed = train(parts, str(parts / "checkpoint-4"), max_steps=6, compile="off")
    start = vit().state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)
    assert any((value - start[name]).abs().max() > 1e-3 for name, value in whole.items())


def test_projections_are_fused_without_compiling_too_and_refused_where_there_are_none(tmp_path, monkeypatch):
    counts = []
    real = module.fused_projections

    @contextlib.contextmanager
    def counting(model):
        with real(model) as count:
            counts.append(count)
            yield count

    monkeypatch.setattr("ipu_trainer.training.acceleration.accelerated_layers.fused_projections", counting)
    samples = [{"pixel_values": pixels.float(), "labels": i % 2} for i, pixels in enumerate(PIXELS)]
    IPUTrainer(vit(), arguments(tmp_path / "vit", fuse_projections=True), train_dataset=samples).train()
    assert counts == [2]
    texts = [{"input_ids": row, "labels": row} for row in IDS]
    with pytest.raises(ValueError, match="no attention with three linear projections"):
        IPUTrainer(gpt2(), arguments(tmp_path / "gpt2", fuse_projections=True), train_dataset=texts).train()
