"""Kernels for ViT's layers: what they compute, where they are put in and where not. The GPU's side runs on a GPU alone."""

import contextlib
import copy
import importlib
import io
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
from ipu_trainer.training import compat
from ipu_trainer.training.compile import compiled_layers
from ipu_trainer.training.drop_path import add_drop_path
from ipu_trainer.training.kernels.rewrite import own_kernels
from ipu_trainer.training.speed import Choice, choose_kernels, told_speed

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "custom_op") or not hasattr(ViTForImageClassification(ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=8
    )).vit, "layers"),
    reason="torch has no custom operations, or transformers builds ViT in another way",
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
    with own_kernels(model) as count:
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
    with own_kernels(model), compiled_layers(model, True, backend), strict:
        yield torch._dynamo.utils.counters


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("rate", "graphs"), [(0.0, 4), (0.5, 5)])
def test_layers_that_hand_on_their_sum_compute_the_same_in_a_few_graphs(backend, rate, graphs):
    """The first gets a sum, the others what is not summed, one gives a sum to the last; the first one is never skipped."""
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


def test_checkpointed_layers_compute_the_same():
    model = make(num_hidden_layers=4)
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable()
    with compiled(model):
        assert_equal(plain, loss_and_gradients(model), 1e-12)


def test_queries_keys_and_values_are_one_product():
    model, counted = make(), []
    linear = functional.linear

    def count(hidden, weight, bias=None):
        counted.append(tuple(weight.shape))
        return linear(hidden, weight, bias)

    with pytest.MonkeyPatch.context() as patch, own_kernels(model):
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
    with own_kernels(model) as count, Watch(used):
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
        names = {"ipu_trainer.packed_attention.default": "attention", "ipu_trainer.bias_gelu.default": "gelu"}
        self.used += [name for operation, name in names.items() if str(function) == operation]
        return function(*given, **(named or {}))


def test_a_copy_computes_with_its_own_weights_and_a_stored_model_with_its_class():
    model = make()
    with own_kernels(model):
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


def test_attention_and_gelu_hold_against_numeric_gradients_and_their_declared_shapes():
    from ipu_trainer.training.kernels.attention import packed_attention
    from ipu_trainer.training.kernels.bias_gelu import bias_gelu

    operations = torch.ops.ipu_trainer
    packed = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: packed_attention(value, None, None, 0.5), packed)
    biases = [torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def attended(is_constant):
        added = torch.stack([*biases, torch.zeros(8)]).view(3, 2, 4)
        if is_constant:
            return packed_attention(packed + added.detach(), *biases, 0.5)
        return packed_attention(packed + added, None, None, 0.5)

    weights = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    ours, wanted = (torch.autograd.grad((attended(one) * weights).sum(), biases) for one in (True, False))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-13)
    product = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bias_gelu, (product, bias))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = packed.detach().to(dtype)
        read, log_sums = operations.packed_attention(values, None, None, 0.5)
        torch.library.opcheck(
            operations.packed_attention.default, (values.requires_grad_(), *(bias.to(dtype) for bias in biases), 0.5)
        )
        given = (torch.ones_like(read), values.detach(), read, log_sums, 0.5)
        torch.library.opcheck(operations.packed_attention_backward.default, given)
        given = (torch.ones(2, 3, 5, dtype=dtype), product.detach().to(dtype), bias.detach().to(read.dtype))
        torch.library.opcheck(operations.bias_gelu_backward.default, given)
        torch.library.opcheck(operations.bias_gelu.default, (given[1].requires_grad_(), given[2].requires_grad_()))


@pytest.mark.parametrize(("kept", "reads_all"), [(None, False), ([0.0, 1.25], False), ([0.0, 1.25], True)])
def test_a_sum_and_its_norm_hold_against_torchs_and_numeric_gradients_and_declared_shapes(kept, reads_all):
    from ipu_trainer.training.kernels.residual_norm import residual_norm

    double = {"dtype": torch.float64, "requires_grad": True}
    given = [
        torch.randn(2, 3, 6, **double),
        torch.randn(2, 3, 6, **double),
        *(torch.randn(6, **double) for _ in range(3)),
    ]
    kept = None if kept is None else torch.tensor(kept, dtype=torch.float64)
    residual, product, bias, weight, norm_bias = given
    total, normalised = residual_norm(*given, 1e-5, kept, reads_all)
    wanted = residual + (product + bias) * (1 if kept is None else kept[:, None, None])
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-14)
    read = residual + product + bias if reads_all else wanted
    torch.testing.assert_close(normalised, functional.layer_norm(read, (6,), weight, norm_bias), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda *values: residual_norm(*values, 1e-5, kept, reads_all), given)
    for stream, products in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2):
        values = [value.detach().to(dtype) for value, dtype in zip(given, (stream, products, *(torch.float32,) * 3))]
        values = [*(value.requires_grad_() for value in values), 1e-5, kept, reads_all]
        torch.library.opcheck(torch.ops.ipu_trainer.residual_norm.default, values)


H100 = {"device": torch.device("cuda"), "compile": "auto", "n_gpu": 1, "bf16": True, "deepspeed": None, "fsdp": []}


@pytest.mark.parametrize(
    ("change", "capability", "reason"),
    [
        ({"device": torch.device("cpu")}, (9, 0), "for a GPU"),
        ({"compile": "off"}, (9, 0), "compile is off"),
        ({"n_gpu": 2}, (9, 0), "compile is off"),
        ({"bf16": False}, (9, 0), "for bf16"),
        ({"deepspeed": "zero3.json"}, (9, 0), "DeepSpeed and FSDP keep those in parts"),
        ({"fsdp": ["full_shard"]}, (9, 0), "DeepSpeed and FSDP keep those in parts"),
        ({}, (8, 0), "this GPU has 8.0"),
        ({}, (9, 0), None),
    ],
)
def test_they_are_chosen_for_the_gpu_that_they_were_made_for(monkeypatch, change, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(name=name))
    args = SimpleNamespace(**{**H100, **change})
    choice = choose_kernels("auto", args)
    assert choice.name == ("off" if reason else "on")
    if reason is None:
        assert choose_kernels("off", args).name == "off"
        assert choose_kernels("on", args).name == "on"
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 8907)
        assert "no cuDNN 9" in choose_kernels("auto", args).reason
    else:
        assert reason in choice.reason
        with pytest.raises(ValueError, match=f"gpu_kernels=on: .*{reason}"):
            choose_kernels("on", args)


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
    host_loop = "ipu_trainer.training.host_loop"
    monkeypatch.setattr(f"{host_loop}.choose_kernels", lambda requested, args: Choice("on", "a test"))
    monkeypatch.setattr(
        f"{host_loop}.compiled_layers", lambda model, required: compiled_layers(model, required, "eager")
    )


@pytest.mark.parametrize("fuse", [False, True])
def test_a_training_uses_them_with_and_without_fused_projections_and_leaves_no_trace(tmp_path, monkeypatch, fuse):
    as_on_an_h100(monkeypatch)
    calls, samples = (
        [],
        [{"pixel_values": pixels.float(), "labels": number % 2} for number, pixels in enumerate(PIXELS)],
    )
    kernels = importlib.import_module("ipu_trainer.training.kernels.forwards")
    for name in ("packed_attention", "bias_gelu", "residual_norm"):
        original = getattr(kernels, name)

        def counted(*given, name=name, original=original, **named):
            calls.append(name)
            return original(*given, **named)

        monkeypatch.setattr(kernels, name, torch.compiler.disable(counted))
    model = make().float()
    IPUTrainer(
        model,
        arguments(tmp_path, compile="layers", fuse_projections=fuse, use_cpu=True, max_steps=1),
        train_dataset=samples,
    ).train()
    assert {name: calls.count(name) for name in calls} == {"packed_attention": 3, "bias_gelu": 3, "residual_norm": 3}
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_without_layers_for_them_is_refused_if_they_are_asked_for(tmp_path, monkeypatch):
    as_on_an_h100(monkeypatch)
    args = arguments(tmp_path, compile="layers", use_cpu=True)
    args.gpu_kernels = "on"  # as on a GPU
    ids = torch.tensor([3, 4, 5])
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no layers that they are for"):
        IPUTrainer(gpt2(), args, train_dataset=[{"input_ids": ids, "labels": ids}] * 4).train()


def attention_case(batch, tokens, heads, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, tokens, 3, heads, 64).bfloat16(), torch.randn(batch, tokens, heads, 64).bfloat16()


@on_h100
@pytest.mark.parametrize(("batch", "tokens", "heads"), [(3, 129, 5), (1, 160, 1), (2, 197, 12), (5, 256, 3)])
def test_the_gpus_attention_is_as_exact_as_the_librarys(batch, tokens, heads):
    from ipu_trainer.training.kernels.attention import packed_attention

    values, weights = attention_case(batch, tokens, heads)
    exact = values.double().requires_grad_()
    (packed_attention(exact, None, None, 0.125) * weights).sum().backward()
    ours, library = values.cuda().requires_grad_(), values.cuda().requires_grad_()
    (packed_attention(ours, None, None, 0.125) * weights.cuda()).sum().backward()
    heads_first = [library[:, :, part].transpose(1, 2) for part in range(3)]
    read = functional.scaled_dot_product_attention(*heads_first, scale=0.125).transpose(1, 2)
    (read * weights.cuda()).sum().backward()
    for part in range(3):
        wanted = exact.grad[:, :, part]
        error, usual = ((value.grad[:, :, part].cpu() - wanted).abs().max() for value in (ours, library))
        assert error <= 1.5 * usual and error < 0.01 * wanted.abs().max()


@on_h100
@pytest.mark.parametrize(("shape", "width"), [((2, 197), 96), ((1, 3), 200), ((4, 300), 3072)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gpus_gelu_rounds_once(shape, width, dtype):
    from ipu_trainer.training.kernels.bias_gelu import bias_gelu

    torch.manual_seed(0)
    product, bias, weights = (
        torch.randn(*shape, width).to(dtype),
        torch.randn(width),
        torch.randn(*shape, width).to(dtype),
    )
    exact = [product.double().requires_grad_(), bias.double().requires_grad_()]
    wanted = bias_gelu(*exact)
    (wanted * weights.double()).sum().backward()
    ours = [product.cuda().requires_grad_(), bias.cuda().requires_grad_()]
    made = bias_gelu(*ours)
    (made * weights.cuda()).sum().backward()
    step = 4 * torch.finfo(dtype).eps if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(made.cpu().double(), wanted, rtol=step, atol=step)
    torch.testing.assert_close(ours[0].grad.cpu().double(), exact[0].grad, rtol=step, atol=step)
    torch.testing.assert_close(ours[1].grad.cpu().double(), exact[1].grad, rtol=1e-5, atol=1e-4)


@on_h100
@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 197, 768), (3, 43, 96), (1, 1, 1024), (5, 130, 384)])
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("skips", "reads_all"), [(False, False), (True, False), (True, True)])
def test_the_gpus_sum_and_norm_round_once(batch, tokens, width, stream, skips, reads_all):
    from ipu_trainer.training.kernels.residual_norm import residual_norm

    torch.manual_seed(0)
    shape, kept = (batch, tokens, width), torch.tensor([1.25, 0.0, 1.25, 1.25, 0.0])[:batch] if skips else None
    given = [torch.randn(shape).to(stream), torch.randn(shape).bfloat16(), *(torch.randn(width) for _ in range(3))]
    weights = [torch.randn(shape).to(stream), torch.randn(shape).bfloat16()]
    if reads_all:  # nothing comes back from behind what is skipped
        weights[1] *= (kept > 0)[:, None, None]

    def made(values, factors):
        values = [value.detach().requires_grad_() for value in values]
        also = None if kept is None else kept.to(values[0].device)
        outputs = residual_norm(*values, 1e-6, also, reads_all)
        sum((output * factor).sum() for output, factor in zip(outputs, factors)).backward()
        return [value.detach().cpu().double() for value in (*outputs, *(value.grad for value in values))]

    ours = made([value.cuda() for value in given], [factor.cuda() for factor in weights])
    wanted = made([value.double() for value in given], [factor.double() for factor in weights])
    bits, stream_step = 2.0**-8, 2.0**-8 if stream == torch.bfloat16 else 1e-5
    for one, other, step in zip(ours, wanted, (stream_step, bits, stream_step, bits)):
        # What a bfloat16 stream rounds in the sum the norm reads.
        atol = 8 * bits if stream == torch.bfloat16 else step
        torch.testing.assert_close(one, other, rtol=step, atol=atol)
    for one, other in zip(ours[4:], wanted[4:]):
        limit = 0.02 if stream == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one, other, rtol=0, atol=float(limit * max(1, other.abs().max())))


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
        assert f"kernels for ViT {name}" in told_speed(args, False, trainer.model)
        assert "kernels" not in told_speed(args, False, gpt2())
        trainer.train()
        losses[name] = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses["on"][0] > losses["on"][-1]
    torch.testing.assert_close(losses["on"], losses["off"], rtol=0, atol=2e-2)
