"""The same numbers on one CUDA GPU. Skipped where there is none."""

import pytest
import torch
from simulated_models import batch, new_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.fixture
def on_cuda(poptorch):
    poptorch.use_torch_device("cuda")
    yield poptorch
    poptorch.use_torch_device("cpu")


def losses(poptorch, model, half=False, steps=10):
    opts = poptorch.Options().replicationFactor(2).randomSeed(1)
    opts.Training.gradientAccumulation(4)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=64.0 if half else 1.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    found = []
    for seed in range(steps):
        x, labels = batch(16, 0 if half else seed)
        found += executor(x.half() if half else x, labels)[1].tolist()
    return found, model.head.weight.detach().float()


def test_training_on_cuda_follows_the_cpu(on_cuda):
    gpu, gpu_weight = losses(on_cuda, new_model(dropout=0.0))
    on_cuda.use_torch_device("cpu")
    cpu, cpu_weight = losses(on_cuda, new_model(dropout=0.0))
    assert gpu == pytest.approx(cpu, rel=1e-3)
    torch.testing.assert_close(gpu_weight, cpu_weight, rtol=1e-3, atol=1e-4)


def test_half_trains_on_cuda(on_cuda):
    gpu, _ = losses(on_cuda, new_model(dropout=0.0).half(), half=True, steps=20)
    assert gpu[-2] < gpu[0]  # replica 0 both times


def test_weights_and_outputs_come_back_to_the_host(on_cuda):
    model = new_model(dropout=0.1, norm=True)
    executor = on_cuda.trainingModel(model)
    logits, loss = executor(*batch(8))
    assert {t.device.type for t in [logits, loss, *model.parameters(), *model.buffers()]} == {"cpu"}
    assert all(copy.is_cuda for variable in executor.device_weights.variables for copy in variable.copies)
    state = executor.rng_state
    executor.rng_state = state
    assert executor.rng_state == state


def test_tensors_made_in_forward_are_on_the_device(on_cuda):
    class Model(torch.nn.Module):
        def forward(self, x):
            return x + torch.arange(3) + torch.ones(3, device="ipu")

    assert on_cuda.inferenceModel(Model())(torch.zeros(1, 3)).tolist() == [[1, 2, 3]]
