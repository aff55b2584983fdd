"""What the simulator computes against plain PyTorch and against itself, parameter by parameter.

Where a test says "equal" it is torch.equal: the same operators run in the same order on the same numbers.
"""

import copy

import pytest
import torch
from simulated_models import batch, new_model

OPTIMIZERS = {
    "SGD": lambda module, params: module.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda module, params: module.Adam(params, lr=0.01, weight_decay=0.01),
    "AdamW": lambda module, params: module.AdamW(params, lr=0.01),
    "RMSprop": lambda module, params: module.RMSprop(params, lr=0.01, momentum=0.5, centered=True),
}


def options(poptorch, accumulation=1, replicas=1, iterations=1, seed=3):
    chosen = poptorch.Options()
    chosen.Training.gradientAccumulation(accumulation)
    chosen.replicationFactor(replicas)
    chosen.deviceIterations(iterations)
    chosen.randomSeed(seed)
    return chosen


def train(poptorch, model, opts, steps=4, samples=16, optimizer=None):
    optimizer = optimizer or poptorch.optim.AdamW(model.parameters(), lr=0.01)
    executor = poptorch.trainingModel(model, opts, optimizer)
    losses = [float(executor(*batch(samples, seed))[1].reshape(-1)[-1]) for seed in range(steps)]
    executor.copyWeightsToHost()
    return losses, executor


def plain(model, optimizer, steps, samples, micro_batches, seed=3):
    torch.manual_seed(seed)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for x, labels in zip(*(tensor.chunk(micro_batches) for tensor in batch(samples, step))):
            _, loss = model(x, labels)
            loss.backward()
        for parameter in model.parameters():
            parameter.grad.div_(micro_batches)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_same(model, other):
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_one_stage_equals_plain_pytorch_bit_for_bit_dropout_included(poptorch, name, micro_batches):
    expected, model = new_model(norm=True), new_model(norm=True)
    plain_optimizer = OPTIMIZERS[name](torch.optim, expected.parameters())
    for group in plain_optimizer.param_groups:
        group["foreach"] = False
    expected_losses = plain(expected, plain_optimizer, 5, 16, micro_batches)
    optimizer = OPTIMIZERS[name](poptorch.optim, model.parameters())
    losses, executor = train(poptorch, model, options(poptorch, micro_batches), 5, optimizer=optimizer)
    executor.destroy()
    assert losses == expected_losses
    assert_same(expected, model)


def test_torchs_own_optimizers_train_as_poptorchs_do(poptorch):
    one, other = new_model(), new_model()
    train(poptorch, one, options(poptorch), optimizer=poptorch.optim.Adam(one.parameters(), lr=0.01))
    train(poptorch, other, options(poptorch), optimizer=torch.optim.Adam(other.parameters(), lr=0.01))
    assert_same(one, other)


def test_lamb_equals_its_own_step_on_the_host(poptorch):
    expected, model = new_model(dropout=0.0), new_model(dropout=0.0)
    plain(expected, poptorch.optim.LAMB(expected.parameters(), lr=0.01), 4, 16, 1)
    train(poptorch, model, options(poptorch), optimizer=poptorch.optim.LAMB(model.parameters(), lr=0.01))
    assert_same(expected, model)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pipeline_equals_one_stage(poptorch, recompute):
    one, cut = new_model(), new_model()
    train(poptorch, one, options(poptorch, accumulation=8))
    for ipu, module in enumerate((cut.first, cut.second, cut.head)):
        poptorch.BeginBlock(module, f"block {ipu}", ipu_id=ipu)
        if recompute:
            module.register_forward_hook(lambda _, __, output: poptorch.recomputationCheckpoint(output))
    opts = options(poptorch, accumulation=8).autoRoundNumIPUs(True)
    _, executor = train(poptorch, cut, opts)
    assert executor.compilation.num_stages == 3
    assert_same(one, cut)


@pytest.mark.parametrize("replicas, accumulation", [(2, 4), (4, 2), (8, 1)])
def test_replicas_times_accumulation_equals_accumulation_alone(poptorch, replicas, accumulation):
    one, many = new_model(), new_model()
    train(poptorch, one, options(poptorch, accumulation=8))
    train(poptorch, many, options(poptorch, accumulation, replicas))
    assert_same(one, many)


def test_accumulation_equals_one_large_batch_up_to_rounding(poptorch):
    one, many = new_model(dropout=0.0), new_model(dropout=0.0)
    train(poptorch, one, options(poptorch), optimizer=torch.optim.SGD(one.parameters(), lr=0.1))
    train(poptorch, many, options(poptorch, accumulation=8), optimizer=torch.optim.SGD(many.parameters(), lr=0.1))
    for a, b in zip(one.parameters(), many.parameters()):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)  # the same sum, in another order


def test_sum_is_the_mean_times_the_micro_batches(poptorch):
    mean, total = new_model(dropout=0.0), new_model(dropout=0.0)
    train(poptorch, mean, options(poptorch, 4), optimizer=torch.optim.SGD(mean.parameters(), lr=0.4))
    opts = options(poptorch, 4)
    opts.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    train(poptorch, total, opts, optimizer=torch.optim.SGD(total.parameters(), lr=0.1))
    for a, b in zip(mean.parameters(), total.parameters()):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)


def test_device_iterations_are_as_many_calls(poptorch):
    one, many = new_model(), new_model()
    together = [torch.cat(column) for column in zip(*(batch(8, seed) for seed in range(3)))]
    executor = poptorch.trainingModel(
        many, options(poptorch, 2, iterations=3), torch.optim.SGD(many.parameters(), lr=0.1)
    )
    executor(*together)
    train(poptorch, one, options(poptorch, 2), 3, 8, torch.optim.SGD(one.parameters(), lr=0.1))
    assert_same(one, many)


def test_loss_scaling_and_every_reduction_strategy_give_the_same_update_in_float32(poptorch):
    models = []
    for scaling, strategy in ((1.0, "Post"), (128.0, "Post"), (128.0, "Running"), (1.0, "PostAndLoss")):
        model = new_model(dropout=0.0)
        opts = options(poptorch, 4)
        opts.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy[strategy])
        train(poptorch, model, opts, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.1, loss_scaling=scaling))
        models.append(model)
    for model in models[1:]:
        for a, b in zip(models[0].parameters(), model.parameters()):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_resumed_training_equals_an_uninterrupted_one(poptorch, name):
    whole = new_model()
    train(poptorch, whole, options(poptorch, 2), 6, optimizer=OPTIMIZERS[name](poptorch.optim, whole.parameters()))

    first = new_model()
    optimizer = OPTIMIZERS[name](poptorch.optim, first.parameters())
    _, executor = train(poptorch, first, options(poptorch, 2), 3, optimizer=optimizer)
    weights, state, random = (
        copy.deepcopy(first.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        executor.rng_state,
    )

    resumed = new_model()
    resumed.load_state_dict(weights)
    optimizer = OPTIMIZERS[name](poptorch.optim, resumed.parameters())
    executor = poptorch.trainingModel(resumed, options(poptorch, 2), optimizer)
    executor.compile(*batch(16))
    optimizer.load_state_dict(state)
    executor.rng_state = random
    for seed in range(3, 6):
        executor(*batch(16, seed))
    assert_same(whole, resumed)


def test_clipping_equals_torchs_over_all_reduced_gradients(poptorch):
    expected, model = new_model(dropout=0.0), new_model(dropout=0.0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    x, labels = batch(16)
    expected(x, labels)[1].backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
    optimizer.step()
    clipping = poptorch.optim.SGD(model.parameters(), lr=0.5, max_grad_norm=0.05)
    train(poptorch, model, options(poptorch), 1, optimizer=clipping)
    assert_same(expected, model)


def test_batch_norm_sees_one_micro_batch_and_each_replica_keeps_its_own_statistics(poptorch):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6))
    opts = poptorch.Options().replicationFactor(2)
    opts.broadcastBuffers(False)
    x = batch(8)[0]
    executor = poptorch.inferenceModel(model.train(), opts)
    output = executor(x)
    expected = torch.cat([torch.nn.functional.batch_norm(half, None, None, training=True) for half in x.chunk(2)])
    torch.testing.assert_close(output, expected)
    statistics = executor.device_weights.buffers[0].copies
    assert len(statistics) == 2
    torch.testing.assert_close(statistics[1], 0.1 * x[4:].mean(0))


def test_the_programs_generator_is_neither_used_nor_moved(poptorch):
    model = new_model(dropout=0.5)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    executor = poptorch.trainingModel(model, options(poptorch, seed=11))
    torch.manual_seed(11)
    executor(*batch(8))
    assert torch.equal(torch.get_rng_state(), before)
