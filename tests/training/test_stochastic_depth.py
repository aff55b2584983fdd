"""Stochastic depth: rates by depth, nothing in evaluation, and one compiled function for all rates."""

import pytest
import torch
from tiny_models import vit
from torch import nn

from ipu_trainer.compat.torch_acceleration import has_hooks
from ipu_trainer.training.acceleration.compiled_layers import compiled_layers
from ipu_trainer.training.finetuning.stochastic_depth import DropPath, add_drop_path, has_only_drop_path

PIXELS = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
compiles = pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch compiles no modules in place")


def layers_of(model):
    return next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) > 1)


def logits_and_gradients(model):
    model.zero_grad()
    torch.manual_seed(1)
    logits = model(pixel_values=PIXELS).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_drop_path_skips_later_layers_more_often_and_nothing_in_evaluation():
    model = vit(3).eval()
    plain = model(pixel_values=PIXELS).logits
    handles = add_drop_path(model, 0.5)
    assert len(handles) == 2
    assert torch.equal(model(pixel_values=PIXELS).logits, plain)
    model.train()
    assert not torch.equal(model(pixel_values=PIXELS).logits, plain)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(pixel_values=PIXELS).logits, plain)


def test_a_layer_is_left_out_as_often_as_its_rate_says_and_the_rest_is_scaled_up():
    model = vit(3).train()
    layer = layers_of(model)[2]
    changes = []
    add_drop_path(model, 0.5)
    layer.register_forward_pre_hook(lambda module, given: changes.append(given[0].detach()))
    layer.register_forward_hook(lambda module, given, output: changes.append(output))
    torch.manual_seed(0)
    with torch.no_grad():
        model(pixel_values=PIXELS.repeat(8, 1, 1, 1))
        before, after = (change[0] if isinstance(change, tuple) else change for change in changes)
        given = layer.eval()(before)
    whole = (given[0] if isinstance(given, tuple) else given) - before
    kept = (after - before).flatten(1).abs().amax(1) > 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close((after - before)[kept], 2 * whole[kept], rtol=0, atol=1e-5)


@compiles
def test_compiled_layers_skip_the_same_samples_in_one_graph_for_all_rates():
    model = vit(layers=12).train()
    add_drop_path(model, 0.5)
    plain = logits_and_gradients(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled_layers(model, True, "aot_eager"):
        compiled = logits_and_gradients(model)
    for one, other in zip(plain, compiled):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    # The first layer is never left out, and has a graph of its own, as the embeddings have.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not any(part._compiled_call_impl for part in model.modules())


@compiles
def test_a_hook_that_comes_later_is_called():
    model, called = vit(3).train(), []
    add_drop_path(model, 0.5)
    plain = logits_and_gradients(model)
    torch._dynamo.reset()
    with compiled_layers(model, True, "aot_eager"):
        logits_and_gradients(model)
        layers_of(model)[2].register_forward_hook(lambda *_: called.append(1))
        compiled = logits_and_gradients(model)
    assert called == [1]
    for one, other in zip(plain, compiled):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_every_kind_are_seen(kind):
    model = vit(3)
    handles = add_drop_path(model, 0.5)
    layer = layers_of(model)[2]
    assert has_only_drop_path(layer) and not has_hooks(layer, (DropPath,)) and has_hooks(layer)
    for register in (
        getattr(layer, f"register_{kind}_hook"),
        getattr(nn.modules.module, f"register_module_{kind}_hook"),
    ):
        handle = register(lambda *_: None)
        assert not has_only_drop_path(layer)
        handle.remove()
        assert has_only_drop_path(layer)
    for handle in handles:
        handle.remove()
    assert not has_hooks(layer)
