"""Optimizers as the device knows them: numbers read at setOptimizer, state read and written by name."""

import copy

import pytest
import torch
from simulated_models import batch, new_model


def trained(poptorch, optimizer_of, steps=1, model=None):
    model = model or new_model(dropout=0.0)
    optimizer = optimizer_of(model)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    for _ in range(steps):
        executor(*batch(8))
    return model, optimizer, executor


def test_a_new_learning_rate_counts_from_the_next_set_optimizer(poptorch):
    model, optimizer, executor = trained(poptorch, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    optimizer.param_groups[0]["lr"] = 0.0
    before = model.head.weight.detach().clone()
    executor(*batch(8))
    assert not torch.equal(model.head.weight, before)
    executor.setOptimizer(optimizer)
    before = model.head.weight.detach().clone()
    executor(*batch(8))
    assert torch.equal(model.head.weight, before)


def test_groups_have_their_own_numbers(poptorch):
    def groups(model):
        return torch.optim.SGD(
            [{"params": model.head.parameters(), "lr": 0.1}, {"params": model.first.parameters()}], lr=0.0
        )

    before = new_model(dropout=0.0)
    model, _, _ = trained(poptorch, groups)
    assert torch.equal(model.first.weight, before.first.weight) and torch.equal(
        model.second.weight, before.second.weight
    )
    assert not torch.equal(model.head.weight, before.head.weight)


def test_a_number_that_was_compiled_in_cannot_change(poptorch):
    _, optimizer, executor = trained(poptorch, lambda m: torch.optim.Adam(m.parameters(), lr=0.1))
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    with pytest.raises(poptorch.Error, match="betas of the optimizer changed"):
        executor.setOptimizer(optimizer)


def test_a_number_that_was_passed_to_a_poptorch_optimizer_can(poptorch):
    _, optimizer, executor = trained(
        poptorch, lambda m: poptorch.optim.Adam(m.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    )
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    executor.setOptimizer(optimizer)
    optimizer.variable_attrs.markAsConstant("weight_decay")
    assert optimizer.variable_attrs.isConstant("weight_decay") and not optimizer.variable_attrs.isConstant("betas")
    with pytest.raises(AssertionError, match="Unknown attribute"):
        optimizer.variable_attrs.markAsConstant("speed")


@pytest.mark.parametrize(
    "optimizer_of, message",
    [
        (lambda m: torch.optim.Adam(m.parameters(), amsgrad=True), "Only non-amsgrad"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, maximize=True), "the device's optimizers minimise"),
        (lambda m: torch.optim.Adagrad(m.parameters()), "Unsupported optimizer type Adagrad"),
    ],
)
def test_what_the_device_does_not_have_is_refused(poptorch, optimizer_of, message):
    with pytest.raises((ValueError, AssertionError), match=message):
        trained(poptorch, optimizer_of)


def test_an_optimizer_of_another_model_is_refused(poptorch):
    with pytest.raises(poptorch.Error, match="that the model does not have"):
        trained(poptorch, lambda m: torch.optim.SGD(new_model().parameters(), lr=0.1))


def test_state_is_empty_before_and_named_after_compiling(poptorch):
    model = new_model()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.025)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    assert optimizer.state_dict()["ipu_state"] is None
    executor.compile(*batch(4))
    state = optimizer.state_dict()
    assert float(state["ipu_param"]["learningRate___specific___head.bias"]) == pytest.approx(0.05)
    assert state["ipu_state"]["Accl2___head.weight"].shape == (3, 8)
    assert not state["ipu_state"]["Accl1___head.weight"].any()
    executor(*batch(4))
    assert optimizer.state_dict()["ipu_state"]["Accl1___head.weight"].any()


def test_a_loaded_state_is_used_and_missing_names_keep_the_devices(poptorch, caplog):
    _, optimizer, executor = trained(poptorch, lambda m: poptorch.optim.Adam(m.parameters(), lr=0.01))
    state = copy.deepcopy(optimizer.state_dict())
    kept = state["ipu_state"].pop("Accl2___head.weight")
    state["ipu_state"]["Accl1___head.weight"].fill_(1.0)
    optimizer.load_state_dict(state)
    executor(*batch(8))
    after = optimizer.state_dict()["ipu_state"]
    assert float(after["Accl1___head.weight"].min()) > 0.8
    assert bool((after["Accl2___head.weight"] >= 0.99 * kept).all())
    assert "Accl2___head.weight" in caplog.text


def test_states_of_other_kinds_are_refused(poptorch):
    optimizer = poptorch.optim.SGD(new_model().parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="because it is empty"):
        optimizer.load_state_dict({})
    with pytest.raises(RuntimeError, match="Only IPU optimizer states"):
        optimizer.load_state_dict(torch.optim.SGD(new_model().parameters(), lr=0.1).state_dict())


def test_adamw_without_bias_correction_still_corrects_as_the_sdk_does(poptorch):
    models = []
    for correction in (True, False):
        model, _, _ = trained(
            poptorch, lambda m, c=correction: poptorch.optim.AdamW(m.parameters(), lr=0.01, bias_correction=c)
        )
        models.append(model)
    assert torch.equal(models[0].head.weight, models[1].head.weight)


def test_tensorflows_rmsprop_differs_by_the_place_of_epsilon(poptorch):
    parameters = []
    for tf in (False, True):
        model, _, _ = trained(
            poptorch, lambda m, tf=tf: poptorch.optim.RMSprop(m.parameters(), lr=0.01, eps=1e-3, use_tf_variant=tf)
        )
        parameters.append(model.head.bias.detach().clone())
    before = new_model(dropout=0.0)
    before(*batch(8))[1].backward()
    gradient = before.head.bias.grad
    expected = before.head.bias - 0.01 * gradient / (0.01 * gradient**2 + 1e-3).sqrt()
    torch.testing.assert_close(parameters[1], expected.detach())
    assert not torch.allclose(*parameters)


def test_per_replica_parameters_train_apart(poptorch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 3))

        def forward(self, x):
            return poptorch.identity_loss(self.weight * x, "sum")

    model = Model()
    executor = poptorch.trainingModel(
        model, poptorch.Options().replicationFactor(2), torch.optim.SGD(model.parameters(), lr=2.0)
    )
    executor.weight.replicaGrouping(poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup)
    executor(torch.tensor([[1.0, 1, 1], [2, 2, 2]]))
    assert model.weight.tolist() == [[-1.0] * 3, [-2.0] * 3]  # each its own gradient, over the mean of two replicas


def test_sgd_without_momentum_takes_every_type_of_velocity(poptorch):
    model, optimizer, _ = trained(
        poptorch, lambda m: poptorch.optim.SGD(m.parameters(), lr=0.1, velocity_accum_type=torch.float16), steps=2
    )
    assert optimizer.state_dict()["ipu_state"] == {} and bool(torch.isfinite(model.head.weight).all())
