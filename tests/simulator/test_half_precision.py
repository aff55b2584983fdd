"""float16: stored in half, rounded after each operator, trained with loss scaling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_models import batch, new_model

from ipu_trainer.simulator.numerics.half_precision import HalfInFloat, round_stochastically
from ipu_trainer.simulator.optim.loss_scaling import AutomaticLossScaling


def half_batch(num_samples, seed=0):
    x, labels = batch(num_samples, seed)
    return x.half(), labels


def test_a_half_model_trains_close_to_its_float32_twin(poptorch):
    wide, narrow = new_model(dropout=0.0), new_model(dropout=0.0).half()
    losses = []
    for model, data, scaling in ((wide, batch, 1.0), (narrow, half_batch, 128.0)):
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=scaling)
        executor = poptorch.trainingModel(model, poptorch.Options().randomSeed(1), optimizer)
        losses.append([float(executor(*data(16))[1]) for _ in range(20)])
    assert narrow.head.weight.dtype == torch.float16
    # A half number has 11 bits; twenty updates stay within a few parts in a hundred.
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1][-1] < 0.8 * losses[1][0]


def test_overflow_of_a_scaled_loss_is_visible_not_skipped(poptorch):
    model = new_model(dropout=0.0).half()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, loss_scaling=1e6)
    poptorch.trainingModel(model, optimizer=optimizer)(*half_batch(8))
    assert not bool(torch.isfinite(model.head.weight).all())


def test_automatic_loss_scaling_halves_until_gradients_fit_and_the_model_survives(poptorch):
    scaling = AutomaticLossScaling({"automaticLossScalingSettings.updatePeriod": 1})
    for _ in range(3):
        scaling.count(torch.full((10,), 60000.0).half())
        scaling.updated(1.0)
    assert scaling.factor == 0.125
    scaling.count(torch.ones(10).half())
    scaling.updated(1.0)
    assert scaling.factor == 0.25
    scaling.count(torch.full((10,), 1e9))  # float32 has no say
    scaling.updated(1.0)
    assert scaling.factor == 0.25


def test_the_automatic_factor_is_part_of_the_optimizers_state(poptorch):
    model = new_model(dropout=0.0).half()
    opts = poptorch.Options()
    opts.Training.setAutomaticLossScaling(True)
    opts._Popart.set("automaticLossScalingSettings.updatePeriod", 1)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=2.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor(*half_batch(8))
    assert float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]) == 2.0


@settings(max_examples=50, deadline=None)
@given(st.floats(-60000, 60000, allow_nan=False, width=32))
def test_stochastic_rounding_gives_a_neighbour(value):
    rounded = round_stochastically(torch.full((64,), value)).float()
    below = torch.tensor(value).half().float()
    gap = 2.0 ** (max(math.frexp(value)[1] - 1, -14) - 10)
    assert bool(((rounded - value).abs() <= gap).all()) and bool(((rounded - below).abs() <= gap).all())


def test_stochastic_rounding_is_right_on_average_and_repeatable():
    value = 1.0 + 0.3 * 2**-10
    draws = [
        round_stochastically(torch.full((100_000,), value), torch.Generator().manual_seed(0)).double() for _ in range(2)
    ]
    # 100,000 draws of a step of 2^-10: the mean's standard error is 2^-10 x sqrt(0.21 / 100,000), 1.4e-6.
    assert float(draws[0].mean()) == pytest.approx(value, abs=6e-6) and torch.equal(*draws)


def test_stochastically_rounded_updates_do_not_stall_where_nearest_ones_do(poptorch):
    weights = []
    for stochastic in (False, True):
        model = torch.nn.Linear(1, 64, bias=False).half()
        torch.nn.init.ones_(model.weight)
        opts = poptorch.Options().randomSeed(5)
        opts.Precision.enableStochasticRounding(stochastic)
        wrapped = torch.nn.Sequential(model, MeanLoss(poptorch))
        executor = poptorch.trainingModel(wrapped, opts, torch.optim.SGD(wrapped.parameters(), lr=0.005))
        for _ in range(20):
            executor(torch.ones(1, 1).half())
        weights.append(float(model.weight.detach().float().mean()))
    # Each update is 0.005 / 64, a sixth of half's spacing below 1: rounding to nearest never moves.
    assert weights[0] == 1.0 and weights[1] == pytest.approx(1 - 20 * 0.005 / 64, abs=5e-4)


class MeanLoss(torch.nn.Module):
    def __init__(self, poptorch):
        super().__init__()
        self.poptorch = poptorch

    def forward(self, x):
        return self.poptorch.identity_loss(x, "mean")


@pytest.mark.parametrize("activations, weights", [("half", "float"), ("float", "half"), ("half", "half")])
def test_a_product_takes_the_type_of_its_activations(poptorch, activations, weights):
    model = getattr(torch.nn.Linear(4, 2), weights)()
    x = getattr(torch.randn(3, 4), activations)()
    output = poptorch.inferenceModel(model)(x)
    assert output.dtype == x.dtype
    torch.testing.assert_close(output.float(), model.float()(x.float()), rtol=5e-3, atol=5e-3)


def test_half_is_computed_in_float32_where_torch_has_no_kernel():
    x = torch.randn(2, 3, 8, 8).half()
    with HalfInFloat():
        convolved = torch.nn.functional.conv2d(x, torch.ones(1, 3, 3, 3).half())
        rows = torch.softmax(x.flatten(1), -1)
    assert convolved.dtype == rows.dtype == torch.float16
    expected = torch.nn.functional.conv2d(x.float(), torch.ones(1, 3, 3, 3))
    torch.testing.assert_close(convolved.float(), expected, rtol=2e-3, atol=2e-2)


def test_moments_in_half_are_rounded_and_still_train(poptorch):
    model = new_model(dropout=0.0)
    optimizer = poptorch.optim.AdamW(
        model.parameters(), lr=0.01, first_order_momentum_accum_type=torch.float16, accum_type=torch.float16
    )
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    losses = [float(executor(*batch(8))[1]) for _ in range(10)]
    moment = optimizer.state_dict()["ipu_state"]["Accl1___head.weight"]
    assert torch.equal(moment, moment.half().float()) and losses[-1] < losses[0]
    strategy = executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Running


def test_floating_point_exceptions_stop_at_the_operator_when_asked_for(poptorch):
    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.log(x)

    opts = poptorch.Options()
    opts.Precision.enableFloatingPointExceptions(True)
    executor = poptorch.inferenceModel(Model(), opts)
    executor(torch.ones(1))
    with pytest.raises(poptorch.Error, match="division by zero or overflow in log"):
        executor(torch.zeros(1))
