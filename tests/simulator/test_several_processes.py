"""Two processes that train together, connected through torch.distributed."""

import pytest
import torch
from simulated_models import batch, new_model
from two_processes import call_in_two


def train_share(poptorch, folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    options = poptorch.Options().randomSeed(0)
    options.Distributed.configureProcessId(rank, 2)
    options.Training.gradientAccumulation(4)
    model = new_model(dropout=0.0)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(3):
        executor(*(tensor.chunk(2)[rank] for tensor in batch(16, step)))
    torch.save(model.state_dict(), f"{folder}/weights{rank}.pt")


def test_two_processes_train_as_one_with_all_their_micro_batches(poptorch, tmp_path):
    call_in_two(train_share, poptorch, tmp_path)
    model = new_model(dropout=0.0)
    options = poptorch.Options()
    options.Training.gradientAccumulation(8)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(3):
        executor(*batch(16, step))
    expected = model.state_dict()
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"weights{rank}.pt", weights_only=True).items():
            # The same sum of gradients, in another order.
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-5, atol=1e-6)


def test_several_processes_without_a_process_group_are_refused(poptorch):
    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match="names 2 processes.*init_process_group"):
        poptorch.trainingModel(new_model(), options)(*batch(4))
