"""Micro-batch coalescing in the simulator: the weights of micro-batches one by one, or an error that says why not."""

import copy
import subprocess
import sys

import pytest
import torch
from simulated_models import batch, new_model

from ipu_trainer.simulator import identity_loss
from ipu_trainer.simulator.enums import OutputMode
from ipu_trainer.simulator.execution.coalescing import coalescing_enabled, split_outputs


@pytest.fixture
def coalescing(poptorch):
    poptorch.coalesce_micro_batches()
    yield poptorch
    poptorch.coalesce_micro_batches(False)


def options(poptorch, accumulation=4, replicas=1, iterations=1, mode="Sum"):
    chosen = poptorch.Options()
    chosen.Training.gradientAccumulation(accumulation)
    chosen.replicationFactor(replicas)
    chosen.deviceIterations(iterations)
    chosen.outputMode(getattr(poptorch.OutputMode, mode))
    chosen.randomSeed(3)
    return chosen


class Counting(torch.nn.Module):
    """Records how many samples each forward has."""

    def __init__(self, model, sizes):
        super().__init__()
        self.model, self.sizes = model, sizes

    def forward(self, x, labels=None):
        self.sizes.append(len(x))
        return self.model(x, labels)


def trained(poptorch, model, opts, steps=4, samples=16):
    sizes = []
    wrapped = Counting(model, sizes)
    executor = poptorch.trainingModel(wrapped, opts, poptorch.optim.AdamW(model.parameters(), lr=0.01))
    outputs = [executor(*batch(samples, seed)) for seed in range(steps)]
    executor.copyWeightsToHost()
    executor.destroy()
    return [tensor for pair in outputs for tensor in pair], sizes


@pytest.mark.parametrize("accumulation, replicas, iterations", [(4, 1, 1), (2, 2, 1), (4, 2, 2), (8, 1, 2)])
@pytest.mark.parametrize("reduction", ["Mean", "Sum"])
def test_weights_and_outputs_are_those_of_single_micro_batches(poptorch, accumulation, replicas, iterations, reduction):
    results = []
    try:
        for coalesce in (False, True):
            poptorch.coalesce_micro_batches(coalesce)
            model = new_model(dropout=0.0)
            opts = options(poptorch, accumulation, replicas, iterations)
            opts.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, reduction))
            results.append((*trained(poptorch, model, opts, samples=32), model))
    finally:
        poptorch.coalesce_micro_batches(False)
    (expected, single, one), (found, together, other) = results
    size = 32 // (accumulation * replicas * iterations)
    assert set(single) == {size}
    assert together[-replicas * iterations :] == [size * accumulation] * (replicas * iterations)
    for value, again in zip(expected, found):
        torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-5)
    for name, value in one.state_dict().items():
        # Sums in another order, enlarged by AdamW's division.
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=2e-5, msg=name)


class Ranking(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, labels=None):
        logits = self.model(x)
        pairs = torch.nn.functional.softplus((logits[:, None] - logits[None]).square())
        return logits, identity_loss(pairs.mean(), reduction="none")


class Summed(Ranking):
    def forward(self, x, labels=None):
        logits = self.model(x)
        return logits, torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Ranking(new_model(dropout=0.0)), "no mean over samples"),
        (lambda: Summed(new_model(dropout=0.0)), "no mean over samples"),
        (lambda: new_model(dropout=0.5), "dropout"),
        (lambda: new_model(dropout=0.0, norm=True), "running statistics"),
    ],
    ids=["ranking", "sum", "dropout", "batch norm"],
)
def test_what_is_not_equal_is_refused_and_leaves_the_weights(coalescing, make, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        trained(coalescing, model, options(coalescing))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_losses_of_single_micro_batches_cannot_be_had(coalescing):
    with pytest.raises(ValueError, match=r"outputMode\(Sum\)"):
        trained(coalescing, new_model(dropout=0.0), options(coalescing, mode="Final"))


def test_half_precision_is_refused(coalescing):
    with pytest.raises(ValueError, match="half precision"):
        model = new_model(dropout=0.0).half()
        executor = coalescing.trainingModel(
            model, options(coalescing), coalescing.optim.SGD(model.parameters(), lr=0.1)
        )
        x, labels = batch(16)
        executor(x.half(), labels)


def test_outputs_are_split_in_order():
    rows = torch.arange(6.0).reshape(6, 1)
    first, second, third = split_outputs([rows, torch.tensor(2.0)], 3, OutputMode.Sum)
    assert first[0].tolist() == [[0.0], [1.0]] and third[0].tolist() == [[4.0], [5.0]]
    assert float(first[1] + second[1] + third[1]) == 6.0
    with pytest.raises(ValueError, match="not 4 micro-batches"):
        split_outputs([rows], 4, OutputMode.All)


SCRIPT = """
import poptorch, torch
model = torch.nn.Linear(3, 1)
class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, x):
        print("forward of", len(x))
        return poptorch.identity_loss(self.model(x).square().mean(), reduction="none")
options = poptorch.Options()
options.Training.gradientAccumulation(4)
options.outputMode(poptorch.OutputMode.Sum)
executor = poptorch.trainingModel(Loss(), options, poptorch.optim.SGD(model.parameters(), lr=0.1))
executor(torch.ones(8, 3)); executor(torch.ones(8, 3))
"""


def test_simulate_coalesces_when_asked_to(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    sizes = []
    for flags in ([], ["--coalesce"]):
        command = [sys.executable, "-m", "ipu_trainer.cli", "simulate", *flags, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        sizes.append([int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("forward of")])
    single, coalesced = sizes
    assert set(single) == {2}
    assert coalesced.count(8) == 2 and coalesced[-1] == 8  # the second update is one coalesced batch alone


def test_the_old_name_warns_and_works(poptorch):
    try:
        with pytest.warns(FutureWarning, match="coalesce_micro_batches"):
            poptorch.fold_micro_batches()
        assert coalescing_enabled()
    finally:
        poptorch.coalesce_micro_batches(False)
