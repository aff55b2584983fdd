"""Where kernels are put into ViT's layers and where not, what such models and trainings compute, and what leaves no trace."""

import contextlib
import copy
import importlib
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import gpt2
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer
from ipu_trainer.training.acceleration.choices import Choice, choose_fused_kernels, describe_acceleration
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers
from ipu_trainer.training.acceleration.fused_kernels import fused_layers
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "triton_op") or not hasattr(ViTForImageClassification(ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=8
    )).vit, "layers"),
    reason="torch has no operations made of Triton kernels, or transformers builds ViT in another way",
)  # fmt: skip
on_h100 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no H100"
)
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randn(4, 3, 32, 32, generator=GENERATOR, dtype=torch.float64)
LABELS = {"labels": torch.tensor([0, 1, 0, 1])}
MAE = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "mask_ratio": 0.5,
}  # fmt: skip
MODELS = {
    "vit": (ViTForImageClassification, ViTConfig, {}, LABELS, 6),
    "vit without biases": (ViTForImageClassification, ViTConfig, {"qkv_bias": False}, LABELS, 6),
    "deit": (DeiTForImageClassification, DeiTConfig, {}, LABELS, 6),
    "vit_msn": (ViTMSNForImageClassification, ViTMSNConfig, {}, LABELS, 6),
    "vit_mae": (ViTMAEForPreTraining, ViTMAEConfig, MAE, {"noise": torch.rand(4, 16, generator=GENERATOR)}, 10),
}


def make(name="vit", **changes):
    model_class, config_class, more, _, _ = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **more, **changes})).double().train()
    for parameter in model.parameters():  # biases begin at 0
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_and_gradients(model, inputs=LABELS):
    model.zero_grad()
    outputs = model(pixel_values=PIXELS, **inputs)
    loss = outputs.loss if outputs.loss is not None else functional.cross_entropy(outputs.logits, inputs["labels"])
    loss.backward()
    return {"loss": loss.detach()}, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one, other, atol):
    for first, second in zip(one, other):
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(
                second[name], value, rtol=0, atol=atol, msg=lambda told, name=name: f"{name}: {told}"
            )


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_in_float64_and_keeps_no_trace(name):
    model, inputs, expected = make(name), *MODELS[name][3:]
    names, plain = list(model.state_dict()), loss_and_gradients(model, inputs)
    with fused_layers(model) as count:
        assert count == expected
        assert list(model.state_dict()) == names
        assert_equal(plain, loss_and_gradients(model, inputs), 1e-13)
    assert not any("forward" in module.__dict__ for module in model.modules())


@contextlib.contextmanager
def compiled(model, backend="aot_eager"):
    """As a training on an H100 has it. Beyond its limit torch compiles nothing more, and only says so."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    strict = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with fused_layers(model), compiled_layers(model, True, backend), strict:
        yield torch._dynamo.utils.counters


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("rate", "graphs"), [(0.0, 4), (0.5, 5)])
def test_layers_that_hand_on_their_sum_compute_the_same_in_a_few_graphs(backend, rate, graphs):
    """One of embeddings. The first layer gets a sum and is never skipped, the others get what is not summed, the last gives a sum."""
    model = make(num_hidden_layers=7)
    add_drop_path(model, rate)
    torch.manual_seed(0)
    plain = loss_and_gradients(model)
    same_numbers = torch._inductor.config.patch(fallback_random=True)
    with same_numbers, compiled(model, backend) as counters:
        torch.manual_seed(0)
        assert_equal(plain, loss_and_gradients(model), 1e-12)
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    assert not any({"forward", "next_layer"} & set(module.__dict__) for module in model.modules())


@pytest.mark.parametrize("name", ["deit", "vit_msn"])
def test_other_models_of_patches_compute_the_same_compiled(name):
    model = make(name)
    plain = loss_and_gradients(model)
    with compiled(model) as counters:
        assert_equal(plain, loss_and_gradients(model), 1e-12)
    assert counters["stats"]["unique_graphs"] == 4  # embeddings, the first layer, the middle one, the last one


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_layer_for_the_class_token_takes_what_is_not_summed(rate):
    model, called = make(num_hidden_layers=4), []
    add_drop_path(model, rate)
    torch.manual_seed(0)
    plain = loss_and_gradients(model)
    last = model.vit.layers[-1]
    with compiled(model, "eager"):
        joined = last.forward
        with ClassTokenLayer.of(model).reading_class_token() as used:
            call = last._compiled_call_impl
            last._compiled_call_impl = lambda *given, **named: called.append(given) or call(*given, **named)
            torch.manual_seed(0)
            assert used
            assert_equal(plain, loss_and_gradients(model), 1e-12)
        assert last.forward is joined
        torch.manual_seed(0)
        assert_equal(plain, loss_and_gradients(model), 1e-12)
    assert [len(given[0]) for given in called] == [4, 4]  # residual, product, bias and what is kept
    assert not any({"forward", "next_layer"} & set(module.__dict__) for module in model.modules())


def test_smaller_batches_and_evaluations_in_between_are_compiled_too():
    model = make(num_hidden_layers=5)
    add_drop_path(model, 0.5)
    evaluated = model.eval()(pixel_values=PIXELS).logits
    with compiled(model, "eager") as counters:
        for samples in (4, 3, 2):
            inputs = {"pixel_values": PIXELS[:samples], "labels": LABELS["labels"][:samples]}
            model.train()(**inputs).loss.backward()
            with torch.no_grad():
                inside = model.eval()(pixel_values=PIXELS[:samples]).logits
            torch.testing.assert_close(inside, evaluated[:samples], rtol=0, atol=1e-13)
    assert counters["stats"]["unique_graphs"] > 8  # torch's limit


def test_whoever_looks_at_a_layer_sees_sums():
    model, seen = make(num_hidden_layers=5), {"plain": [], "inside": []}
    layer = model.vit.layers[2]

    def look(name):
        handles = [layer.register_forward_pre_hook(lambda _, given: seen[name].append(given[0].detach()))]
        return [*handles, layer.register_forward_hook(lambda *given: seen[name].append(given[2].detach()))]

    handles = look("plain")
    plain = loss_and_gradients(model)
    for handle in handles:
        handle.remove()
    with compiled(model):
        assert_equal(plain, loss_and_gradients(model), 1e-12)
        look("inside")
        assert_equal(plain, loss_and_gradients(model), 1e-12)
    assert len(seen["plain"]) == 2
    torch.testing.assert_close(seen["inside"], seen["plain"], rtol=0, atol=1e-13)


def test_hidden_states_that_are_asked_for_are_sums():
    model = make(num_hidden_layers=4)
    plain = model(pixel_values=PIXELS, output_hidden_states=True).hidden_states
    fresh = make(num_hidden_layers=4)
    with compiled(fresh):
        fresh(pixel_values=PIXELS)
        inside = fresh(pixel_values=PIXELS, output_hidden_states=True).hidden_states
    assert len(plain) == 5
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_compute_the_same(use_reentrant):
    model = make(num_hidden_layers=4)
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with compiled(model):
        assert_equal(plain, loss_and_gradients(model), 1e-12)


def test_dropout_between_layers_is_computed_as_before():
    model = make(num_hidden_layers=4, hidden_dropout_prob=0.5)
    torch.manual_seed(0)
    plain = loss_and_gradients(model)
    with compiled(model):
        torch.manual_seed(0)
        assert_equal(plain, loss_and_gradients(model), 1e-12)


PARTS = (
    "attention", "attention.q_proj", "attention.o_proj", "layernorm_before", "layernorm_after", "dropout", "mlp", "mlp.fc1",
    "mlp.activation_fn", "mlp.fc2",
)  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("joined", [False, True])
def test_a_hook_on_any_part_of_a_layer_is_called(name, joined):
    model, called = make(num_hidden_layers=4), []
    plain = loss_and_gradients(model)
    part = model.vit.layers[1].get_submodule(name)
    with compiled(model) if joined else fused_layers(model):
        handle = part.register_forward_hook(lambda *_: called.append(name))
        assert_equal(plain, loss_and_gradients(model), 1e-12)
        handle.remove()
    assert called == [name] * (2 if name == "dropout" else 1)


def test_queries_keys_and_values_are_one_product():
    model, counted = make(), []
    linear = functional.linear

    def count(hidden, weight, bias=None):
        counted.append(tuple(weight.shape))
        return linear(hidden, weight, bias)

    with pytest.MonkeyPatch.context() as patch, fused_layers(model):
        patch.setattr(torch.nn.functional, "linear", count)
        model(pixel_values=PIXELS)
    assert counted.count((96, 32)) == 3


@pytest.mark.parametrize(
    "change",
    ["evaluation", "dropout", "eager attention", "adapter", "hook", "later hooks", "another activation"],
)
def test_what_they_were_not_made_for_stays_as_it_is(change):
    model = make(**{"another activation": {"hidden_act": "gelu_new"}}.get(change, {}))
    attention, used = model.vit.layers[0].attention, []
    expected = {"adapter": 5, "hook": 5, "another activation": 3}.get(change, 6)
    if change == "adapter":
        attention.q_proj = type("Adapted", (torch.nn.Linear,), {})(32, 32).double()
    if change == "hook":
        attention.k_proj.register_forward_hook(lambda *_: None)
    if change == "evaluation":
        model.eval()
    if change == "dropout":
        attention.attention_dropout = 1.0  # nothing is read then
    if change == "eager attention":
        model.set_attn_implementation("eager")
    plain, called = model(pixel_values=PIXELS).logits, []
    with fused_layers(model) as count, Watch(used):
        if change == "later hooks":
            attention.v_proj.register_full_backward_hook(lambda *_: called.append("backward"))
            model.vit.layers[0].mlp.fc1.register_forward_hook(lambda *_: called.append("forward"))
        inside = model(pixel_values=PIXELS).logits
        inside.sum().backward()
    assert count == expected
    assert sorted(called) == (["backward", "forward"] if change == "later hooks" else [])
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-13)
    operations = {"evaluation": (0, 0), "dropout": (2, 3), "eager attention": (0, 3), "later hooks": (2, 2)}
    attentions, gelus = operations.get(change, (3 if expected == 3 else 2, 0 if expected == 3 else 3))
    assert (used.count("attention"), used.count("gelu")) == (attentions, gelus)


class Watch(TorchDispatchMode):
    """Notes in `used` which of the two operations are called."""

    def __init__(self, used):
        super().__init__()
        self.used = used

    def __torch_dispatch__(self, function, types, given=(), named=None):
        names = {"packed_attention.default": "attention", "bias_gelu.default": "gelu"}
        namespace, _, operation = str(function).partition(".")
        if namespace.startswith("ipu_trainer") and operation in names:
            self.used.append(names[operation])
        return function(*given, **(named or {}))


def test_a_copy_computes_with_its_own_weights_and_a_stored_model_with_its_class():
    model = make()
    with fused_layers(model):
        before = model(pixel_values=PIXELS).logits
        copied, stored = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stored)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(1.5)
        assert torch.equal(model(pixel_values=PIXELS).logits, before)
        inside = copied(pixel_values=PIXELS).logits
    plain = make()
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(inside, plain(pixel_values=PIXELS).logits, rtol=0, atol=1e-12)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    torch.testing.assert_close(loaded(pixel_values=PIXELS).logits, before, rtol=0, atol=1e-12)


H100 = {"device": torch.device("cuda"), "compile": "auto", "n_gpu": 1, "bf16": True, "deepspeed": None, "fsdp": []}


@pytest.mark.parametrize(
    ("change", "capability", "reason"),
    [
        ({"device": torch.device("cpu")}, (9, 0), "for a GPU"),
        ({"compile": "off"}, (9, 0), "compile is off"),
        ({"n_gpu": 2}, (9, 0), "compile is off"),
        ({"bf16": False}, (9, 0), "for bf16"),
        ({"deepspeed": "zero3.json"}, (9, 0), "DeepSpeed and FSDP shard"),
        ({"fsdp": ["full_shard"]}, (9, 0), "DeepSpeed and FSDP shard"),
        ({}, (8, 0), "this GPU has 8.0"),
        ({}, (9, 0), None),
    ],
)
def test_they_are_chosen_for_the_gpu_that_they_were_made_for(monkeypatch, change, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(name=name))
    args = SimpleNamespace(**{**H100, **change})
    choice = choose_fused_kernels("auto", args)
    assert choice.name == ("off" if reason else "on")
    if reason is None:
        assert choose_fused_kernels("off", args).name == "off"
        assert choose_fused_kernels("on", args).name == "on"
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 8907)
        assert "no cuDNN 9" in choose_fused_kernels("auto", args).reason
    else:
        assert reason in choice.reason
        with pytest.raises(ValueError, match=f"gpu_kernels=on: .*{reason}"):
            choose_fused_kernels("on", args)


def arguments(folder, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 4, "report_to": [], "backend": "host",
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    return IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))


def test_a_run_refuses_what_cannot_be_before_it_starts(tmp_path):
    with pytest.raises(ValueError, match="not one of auto, on, off"):
        arguments(tmp_path, gpu_kernels="true")
    for other in ({"backend": "simulated"}, {"use_cpu": True}):
        with pytest.raises(ValueError, match="gpu_kernels=on: they are for a GPU"):
            arguments(tmp_path, gpu_kernels="on", **other)


def as_on_an_h100(monkeypatch):
    """The trainer's choices of an H100 on this CPU, where the operations are plain torch."""
    module = "ipu_trainer.training.acceleration.accelerated_training"
    monkeypatch.setattr(f"{module}.choose_fused_kernels", lambda requested, args: Choice("on", "a test"))
    monkeypatch.setattr(f"{module}.compiled_layers", lambda model, required: compiled_layers(model, required, "eager"))


def test_a_training_uses_them_and_leaves_no_trace(tmp_path, monkeypatch):
    as_on_an_h100(monkeypatch)
    calls, samples = (
        [],
        [{"pixel_values": pixels.float(), "labels": number % 2} for number, pixels in enumerate(PIXELS)],
    )
    kernels = importlib.import_module("ipu_trainer.training.acceleration.fused_kernels.vit_forwards")
    for name in ("packed_attention", "bias_gelu", "residual_norm"):
        original = getattr(kernels, name)

        def counted(*given, name=name, original=original, **named):
            calls.append(name)
            return original(*given, **named)

        monkeypatch.setattr(kernels, name, torch.compiler.disable(counted))
    model = make().float()
    IPUTrainer(
        model,
        arguments(tmp_path, compile="layers", use_cpu=True, max_steps=1),
        train_dataset=samples,
    ).train()
    assert {name: calls.count(name) for name in calls} == {"packed_attention": 3, "bias_gelu": 3, "residual_norm": 5}
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_without_layers_for_them_is_refused_if_they_are_asked_for(tmp_path, monkeypatch):
    as_on_an_h100(monkeypatch)
    args = arguments(tmp_path, compile="layers", use_cpu=True)
    args.gpu_kernels = "on"  # as on a GPU
    ids = torch.tensor([3, 4, 5])
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no layers that the fused kernels are for"):
        IPUTrainer(gpt2(), args, train_dataset=[{"input_ids": ids, "labels": ids}] * 4).train()


def test_without_the_package_all_else_works_and_asking_for_it_is_refused(tmp_path, monkeypatch):
    acceleration = importlib.import_module("ipu_trainer.training.acceleration")
    for name in [name for name in sys.modules if name.startswith(f"{acceleration.__name__}.fused_kernels")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{acceleration.__name__}.fused_kernels", None)
    monkeypatch.delattr(acceleration, "fused_kernels", raising=False)
    with pytest.raises(ValueError, match="fused_kernels is not installed"):
        choose_fused_kernels("on", SimpleNamespace(**H100))
    assert "not installed" in choose_fused_kernels("auto", SimpleNamespace(**H100)).reason
    monkeypatch.setattr(
        "ipu_trainer.training.acceleration.accelerated_training.compiled_layers",
        lambda model, required: compiled_layers(model, required, "eager"),
    )
    model, before = make().float(), make().float().state_dict()
    samples = [{"pixel_values": pixels.float(), "labels": number % 2} for number, pixels in enumerate(PIXELS)]
    args = arguments(tmp_path, compile="layers", use_cpu=True, max_steps=1, drop_path=0.1)
    assert describe_acceleration(args, False, model).startswith("compile layers")
    IPUTrainer(model, args, train_dataset=samples).train()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@on_h100
def test_a_training_on_a_gpu_goes_the_same_way_with_and_without_them(tmp_path):
    """224 px have 197 tokens, and the layers heads of 64: what the kernels are for."""
    torch.manual_seed(1)
    samples = [{"pixel_values": torch.randn(3, 224, 224), "labels": number % 2} for number in range(8)]
    losses = {}
    for name in ("on", "off"):
        config = ViTConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256)
        torch.manual_seed(0)
        args = arguments(tmp_path / name, gpu_kernels=name, bf16=True, max_steps=12)
        trainer = IPUTrainer(ViTForImageClassification(config), args, train_dataset=samples)
        assert f"fused kernels {name}" in describe_acceleration(args, False, trainer.model)
        assert "kernels" not in describe_acceleration(args, False, gpt2())
        trainer.train()
        losses[name] = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses["on"][0] > losses["on"][-1]
    torch.testing.assert_close(losses["on"], losses["off"], rtol=0, atol=2e-2)
