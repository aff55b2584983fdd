"""One CPU thread for small models: which are small, what is left alone, and that nothing else of a training changes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from ipu_trainer.training.host import thread_count
from ipu_trainer.training.host.thread_count import SMALL_PRODUCT, ThreadCount, largest_product

ARGS = SimpleNamespace(device=torch.device("cpu"), torch_compile=False, compile="auto")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    given = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(thread_count, "_default_num_threads", 2)
    yield
    torch.set_num_threads(given)


class Noted(nn.Module):
    """A layer that notes with how many threads it is computed."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.threads = nn.Linear(width, width), []

    def forward(self, x):
        if x.device.type == "cpu":
            self.threads.append(torch.get_num_threads())
        return self.layer(x)


def threads_of_a_step(model, x):
    count = ThreadCount()
    with count.training(ARGS), count.of_step(model):
        model(x)
    return model.threads


def test_small_steps_have_one_thread_and_what_comes_after_the_training_has_two():
    model, count = Noted(8), ThreadCount()
    with count.training(ARGS):
        for _ in range(2):
            with count.of_step(model):
                model(torch.ones(4, 8)).sum().backward()
        assert torch.get_num_threads() == 1  # for the optimizer
        with count.evaluation():
            model(torch.ones(4, 8))
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert model.threads == [1, 1, 2] and model.layer.weight.grad is not None


def test_outside_of_a_training_nothing_is_chosen():
    model, count = Noted(8), ThreadCount()
    with count.evaluation(), count.of_step(model):
        model(torch.ones(4, 8))
    assert model.threads == [2]


def test_each_shape_of_batch_is_decided_for_itself():
    model, count = Noted(8), ThreadCount()
    with count.training(ARGS):
        for rows in (4, SMALL_PRODUCT // 128 + 1, 4):
            with count.of_step(model):
                model(torch.ones(rows, 8))
    assert model.threads == [1, 2, 1]


@pytest.mark.parametrize("width, rows", [(8, SMALL_PRODUCT // 128 + 1), (4000, 1)])
def test_large_batches_and_models_keep_their_threads_and_see_no_call_of_set_num_threads(monkeypatch, width, rows):
    """torch.set_num_threads(2) where there are two changes MKL's results in the last digit (torch 2.13)."""
    model = Noted(width)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda _: pytest.fail("called"))
        assert threads_of_a_step(model, torch.ones(rows, width)) == [2]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_decides(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert threads_of_a_step(Noted(8), torch.ones(4, 8)) == [2]


def test_a_number_that_a_program_set_is_kept(monkeypatch):
    monkeypatch.setattr(thread_count, "_default_num_threads", 4)
    assert threads_of_a_step(Noted(8), torch.ones(4, 8)) == [2]


def test_the_largest_product_of_a_vit_is_estimated_by_its_patches():
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
    model = ViTForImageClassification(config)
    patches, weight = 3 * 2 * 2, 3 * 16 * 16 * 16
    assert largest_product(model, [torch.ones(3, 3, 32, 32), torch.ones(3)]) == 2 * patches * weight


def test_the_largest_product_of_gpt2_is_its_tied_head():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    ids = torch.zeros(2, 8, dtype=torch.long)
    assert largest_product(model, [ids, ids]) == 2 * 16 * 16 * 100


def test_where_nothing_tells_the_rows_a_model_keeps_its_threads():
    assert largest_product(nn.Conv1d(1, 8, 10, stride=5), [torch.ones(4, 1000)]) == 2 * 4 * 1000 * 80  # raw audio
    assert largest_product(nn.Identity(), [torch.ones(4)]) == largest_product(nn.Linear(8, 8), []) == SMALL_PRODUCT


@pytest.mark.parametrize("args", [{"device": torch.device("cuda")}, {"torch_compile": True}, {"compile": "layers"}])
def test_gpus_and_compiled_layers_keep_their_threads(args):
    model, count = Noted(8), ThreadCount()
    with count.training(SimpleNamespace(**{**vars(ARGS), **args})), count.of_step(model):
        model(torch.ones(4, 8))
    assert model.threads == [2]
