"""Compiled layers: the same numbers, parameters and checkpoints, and nothing left behind."""

import contextlib
import copy

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
from ipu_trainer.training.acceleration.choices import Choice as Precision
from ipu_trainer.training.acceleration.choices import choose_compile, describe_acceleration, used_precision
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers

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
    "gpt2": (gpt2, {"input_ids": IDS, "labels": IDS}, 2),
    "bart": (bart, {"input_ids": IDS, "labels": IDS}, 4),  # of the encoder and of the decoder
}


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@compiles
@pytest.mark.parametrize("name", CASES)
def test_compiled_layers_compute_the_same_and_leave_no_trace(name):
    make, inputs, expected = CASES[name]
    model = make().double().train()
    loss, gradients = loss_and_gradients(model, inputs)
    torch._dynamo.reset()
    with compiled_layers(model, True, "aot_eager") as count:
        assert count == expected
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
    """One compilation for twelve layers, not twelve and one for the embeddings."""
    from torch._dynamo.utils import counters

    model = vit(layers=12).train()
    torch._dynamo.reset()
    counters.clear()
    with compiled_layers(model, True, "aot_eager"):
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

    monkeypatch.setattr("ipu_trainer.training.acceleration.accelerated_training.compiled_layers", without_inductor)
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
def test_a_run_resumes_compiled_from_a_plain_checkpoint_and_back(tmp_path, monkeypatch):
    """Weights and AdamW's state go from off to layers, and from there to off again."""
    real = module.compiled_layers
    monkeypatch.setattr(
        "ipu_trainer.training.acceleration.accelerated_training.compiled_layers",
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
    train(parts, None, max_steps=2, compile="off")
    train(parts, str(parts / "checkpoint-2"), max_steps=4, compile="layers")
    resumed = train(parts, str(parts / "checkpoint-4"), max_steps=6, compile="off")
    start = vit().state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)
    assert any((value - start[name]).abs().max() > 1e-3 for name, value in whole.items())
