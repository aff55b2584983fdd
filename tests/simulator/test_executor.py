"""Batches, outputs, losses, weights and the life of an executor."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_models import batch, new_model

import ipu_trainer.simulator as simulator
from ipu_trainer.simulator.execution.saved_executables import read_executable

SMALL = st.integers(1, 3)


class Identity(torch.nn.Module):
    def forward(self, x):
        return x * 1


class WithLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        out = self.scale * x
        return out, simulator.identity_loss(out, "mean")


@settings(max_examples=30, deadline=None)
@given(SMALL, SMALL, SMALL, SMALL)
def test_all_outputs_come_back_in_the_order_of_the_inputs(iterations, accumulation, replicas, micro_batch):
    opts = simulator.Options().deviceIterations(iterations).replicationFactor(replicas).autoRoundNumIPUs(True)
    opts.Training.gradientAccumulation(accumulation)
    opts.outputMode(simulator.OutputMode.All)
    executor = simulator.trainingModel(WithLoss(), opts, None)
    x = torch.arange(float(iterations * accumulation * replicas * micro_batch))
    outputs, losses = executor(x)
    # One update a device iteration: the scale changes between them, never within.
    scales = outputs[1:] / x[1:] if len(x) > 1 else outputs
    assert outputs.shape == x.shape and losses.numel() == iterations * accumulation * replicas
    per_update = accumulation * replicas * micro_batch
    for update in range(iterations):
        within = [float(s) for s in scales[max(update * per_update - 1, 0) : (update + 1) * per_update - 1]]
        assert all(abs(s - within[0]) < 1e-5 * max(1, abs(within[0])) for s in within)


@pytest.mark.parametrize(
    "mode, period, expected",
    [("Final", None, [10, 11]), ("All", None, list(range(12))), ("EveryN", 3, [4, 5, 10, 11]), ("Sum", None, [30, 36])],
)
def test_output_modes_choose_along_iterations_and_never_reduce_replicas(poptorch, mode, period, expected):
    opts = poptorch.Options().deviceIterations(6).replicationFactor(2)
    opts.outputMode(poptorch.OutputMode[mode], period)
    assert poptorch.inferenceModel(Identity(), opts)(torch.arange(12.0)).tolist() == expected


def test_an_every_n_that_does_not_divide_is_refused(poptorch):
    opts = poptorch.Options().deviceIterations(4)
    opts.outputMode(poptorch.OutputMode.EveryN, 3)
    with pytest.raises(poptorch.Error, match="3 must be a factor of 4"):
        poptorch.inferenceModel(Identity(), opts)(torch.ones(4))


def test_structures_come_back_and_types_are_narrowed(poptorch):
    class Model(torch.nn.Module):
        def forward(self, x, names):
            return {"sum": (x + 1, [x.double()]), "index": x.argmax(), "name": names}

    out = poptorch.inferenceModel(Model())(torch.tensor([1, 5, 2]), "kept")
    assert out["name"] == "kept" and out["index"].dtype == torch.int32 and int(out["index"]) == 1
    assert out["sum"][1][0].dtype == torch.float32 and out["sum"][0].tolist() == [2, 6, 3]


def test_what_forward_writes_into_an_input_the_program_sees_once(poptorch):
    class Model(torch.nn.Module):
        def forward(self, x):
            x += 1
            return x * 2

    x = torch.zeros(4, dtype=torch.int32)
    executor = poptorch.inferenceModel(Model(), poptorch.Options().deviceIterations(2))
    assert executor(x).tolist() == [2] * 4 and x.tolist() == [1] * 4
    executor(x)
    assert x.tolist() == [2] * 4


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers(poptorch):
    opts = poptorch.Options().deviceIterations(3)
    with pytest.raises(AssertionError, match=r"Invalid batch dimension.*\(4\) must be a multiple.*= 3"):
        poptorch.inferenceModel(Identity(), opts)(torch.ones(4))


def test_shapes_types_and_other_arguments_are_fixed_by_the_first_call(poptorch):
    class Model(torch.nn.Module):
        def forward(self, x, factor=2, *, offset=0):
            return x * factor + offset

    executor = poptorch.inferenceModel(Model())
    assert executor(torch.ones(2), offset=1).tolist() == [3, 3]
    with pytest.raises(poptorch.Error, match="Shape mismatch for x: expected torch.Size"):
        executor(torch.ones(3), offset=1)
    with pytest.raises(poptorch.Error, match="Data type mismatch for x"):
        executor(torch.ones(2).half(), offset=1)
    with pytest.raises(poptorch.Error, match="Value mismatch for factor: expected 2 but got 5"):
        executor(torch.ones(2), 5, offset=1)
    with pytest.raises(AssertionError, match="Too many arguments provided"):
        executor(torch.ones(2), 1, 2, 3)
    executor.destroy()
    assert executor(torch.ones(3), 5).tolist() == [5, 5, 5]


def test_a_missing_argument_is_named(poptorch):
    with pytest.raises(poptorch.Error, match="Mandatory parameter x missing"):
        poptorch.inferenceModel(Identity())()


class Losses(torch.nn.Module):
    def __init__(self, losses):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.losses = losses

    def forward(self, x):
        return self.losses(self.layer(x))


def mse(x):
    return torch.nn.functional.mse_loss(x, torch.zeros_like(x))


def test_a_model_without_a_loss_cannot_train(poptorch):
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        poptorch.trainingModel(Losses(lambda x: x.sum()))(torch.ones(1, 2))


def test_two_independent_losses_need_a_final_one(poptorch):
    with pytest.raises(poptorch.Error, match="Multiple independent losses found in graph"):
        poptorch.trainingModel(Losses(lambda x: (mse(x), mse(x + 1))))(torch.ones(1, 2))


def test_a_loss_of_losses_is_the_loss_even_if_it_is_not_returned(poptorch):
    def losses(x):
        first, second = mse(x), mse(x + 1)
        simulator.identity_loss(first + second, "none")
        return first

    model = Losses(losses)
    before = copy.deepcopy(model.layer)
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(1, 2))
    (mse(before(torch.ones(1, 2))) + mse(before(torch.ones(1, 2)) + 1)).backward()
    torch.testing.assert_close(model.layer.weight, before.weight - 0.1 * before.weight.grad)


def test_backward_on_an_output_says_what_to_do(poptorch):
    with pytest.raises(poptorch.Error, match="you should use a trainingModel instead"):
        poptorch.inferenceModel(Identity())(torch.ones(1)).backward()


def test_reading_a_weight_fetches_it_and_nothing_is_fetched_before(poptorch):
    model = new_model()
    before = model.head.weight.detach().clone()
    executor = poptorch.trainingModel(model)
    executor(*batch(4))
    assert executor._dirty_host_weights
    assert not torch.equal(model.head.weight, before)
    assert not executor._dirty_host_weights


def test_host_edits_reach_the_device_only_when_they_are_sent(poptorch):
    model = torch.nn.Linear(1, 1, bias=False)
    executor = poptorch.inferenceModel(model)
    with torch.no_grad():
        model.weight.fill_(2)
        assert float(executor(torch.ones(1, 1))) == 2
        model.weight.fill_(3)
        assert float(executor(torch.ones(1, 1))) == 2
        executor.copyWeightsToDevice()
        assert float(executor(torch.ones(1, 1))) == 3
    executor.load_state_dict({"weight": torch.full((1, 1), 4.0)})
    assert float(executor(torch.ones(1, 1))) == 4


def test_an_inference_executor_follows_the_training_of_its_model(poptorch):
    model = new_model(dropout=0.0)
    training, inference = poptorch.trainingModel(model), poptorch.inferenceModel(model)
    x, labels = batch(4)
    first = inference(x)
    training(x, labels)
    assert not torch.equal(inference(x), first)
    torch.testing.assert_close(inference(x), model(x))


def test_a_wrapped_model_is_saved_copied_and_pickled_as_a_plain_one(poptorch, tmp_path):
    model = new_model()
    executor = poptorch.trainingModel(model)
    executor(*batch(4))
    assert type(model).__name__ == "PoptorchClassifier" and type(model).__bases__[0].__name__ == "Classifier"
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(duplicate).__name__ == "Classifier" and type(duplicate.head.weight) is torch.nn.Parameter
        assert torch.equal(duplicate.head.weight, model.head.weight)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", **({"weights_only": True}))
    assert torch.equal(state["head.weight"], model.head.weight)
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(model)
    executor.destroy()
    assert type(model).__name__ == "Classifier" and type(model.head.weight) is torch.nn.Parameter


def test_tied_weights_stay_tied(poptorch):
    model = new_model(dropout=0.0)
    model.second.weight = torch.nn.Parameter(torch.randn(8, 8))
    model.norm = torch.nn.Linear(8, 8, bias=False)
    model.norm.weight = model.second.weight
    executor = poptorch.trainingModel(model)
    executor(*batch(4))
    assert model.norm.weight is model.second.weight
    assert sum("second.weight" in v.names for v in executor.device_weights.variables) == 1


def test_a_reassigned_parameter_is_refused_by_name(poptorch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.zeros(1))

        def forward(self, x):
            self.state = self.state + x
            return self.state

    model = Model()
    with pytest.raises(poptorch.Error, match="Buffer state is reassigned within the model"):
        poptorch.inferenceModel(model)(torch.ones(1))
    assert model.state.tolist() == [0]


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += x.sum()
        return self.count


def test_buffers_live_on_the_device_between_calls(poptorch):
    executor = poptorch.inferenceModel(Counter())
    assert [float(executor(torch.ones(1))) for _ in range(3)] == [1, 2, 3]


def test_a_buffer_that_replicas_would_disagree_on_is_refused_by_name(poptorch):
    opts = poptorch.Options().replicationFactor(2)
    with pytest.raises(poptorch.Error, match=r"does not support broadcasting buffers.*count"):
        poptorch.inferenceModel(Counter(), opts)(torch.ones(2))


def test_named_buffers_can_be_sent_alone(poptorch):
    model = Counter()
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["count"]))
    executor(torch.ones(1))
    model.count.fill_(10)
    executor.copyNamedBuffersToDevice()
    assert float(executor(torch.ones(1))) == 11
    with pytest.raises(poptorch.Error, match="nothing"):
        poptorch.inferenceModel(Counter(), poptorch.Options().updatableNamedBuffers(["nothing"]))(torch.ones(1))


def test_the_life_of_an_executor_has_its_errors(poptorch):
    model = new_model()
    executor = poptorch.trainingModel(model)
    with pytest.raises(poptorch.Error, match="has not been compiled"):
        executor.attachToDevice()
    executor.compile(*batch(4))
    with pytest.raises(poptorch.Error, match="already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    assert executor.isCompiled() and not executor.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="not attached"):
        executor.detachFromDevice()
    executor(*batch(4))
    assert executor.isAttachedToDevice()
    executor.destroy()
    assert not executor.isCompiled()


def test_a_device_asked_for_by_number_is_exclusive(poptorch):
    opts = poptorch.Options().useIpuId(1)
    first, second = poptorch.inferenceModel(Identity(), opts), poptorch.inferenceModel(Identity(), opts)
    first(torch.ones(1))
    with pytest.raises(poptorch.Error, match="Failed to acquire device Id 1"):
        second(torch.ones(1))
    first.detachFromDevice()
    assert float(second(torch.ones(1))) == 1


def test_an_offline_device_compiles_and_refuses_to_run(poptorch):
    executor = poptorch.inferenceModel(Identity(), poptorch.Options().useOfflineIpuTarget())
    executor.compile(torch.ones(1))
    with pytest.raises(AssertionError, match="Trying to run a model on an offline device"):
        executor(torch.ones(1))


def test_a_saved_executable_goes_on_where_it_stopped(poptorch, tmp_path):
    model = new_model()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.Adam(model.parameters(), lr=0.01))
    executor(*batch(4))
    executor.save(str(tmp_path / "run" / "training.poptorch"))
    assert not any(t.any() for t in read_executable(str(tmp_path / "run" / "training.poptorch")).inputs.tensors())
    loaded = poptorch.load(str(tmp_path / "run" / "training.poptorch"))
    for _ in range(2):
        assert torch.equal(executor(*batch(4))[0], loaded(*batch(4))[0])
    assert torch.equal(model.head.weight, loaded.model.head.weight)


def test_a_file_that_is_no_executable_is_refused(poptorch, tmp_path):
    (tmp_path / "x.poptorch").write_bytes(pickle.dumps("anything"))
    with pytest.raises(poptorch.Error, match="Invalid file"):
        poptorch.load(str(tmp_path / "x.poptorch"))


def test_hooks_run_around_compiling_and_can_be_removed(poptorch):
    calls = []
    before = poptorch.registerPreCompileHook(lambda: calls.append("before"))
    after = poptorch.registerPostCompileHook(lambda: calls.append("after"))
    poptorch.inferenceModel(Identity())(torch.ones(1))
    before.remove()
    after.remove()
    poptorch.inferenceModel(Identity())(torch.ones(1))
    assert calls == ["before", "after"]


def test_the_model_knows_that_it_runs_on_the_device(poptorch):
    class Model(torch.nn.Module):
        def forward(self, x):
            return x + (1 if simulator.isRunningOnIpu() else 0)

    model = Model()
    assert float(poptorch.inferenceModel(model)(torch.zeros(1))) == 1 and float(model(torch.zeros(1))) == 0


def test_the_modes_of_modules_are_those_of_compiling(poptorch):
    model = new_model(dropout=0.9).eval()
    executor = poptorch.inferenceModel(model)
    x = batch(4)[0]
    first = executor(x)
    model.train()
    assert torch.equal(executor(x), first) and model.dropout.training


def test_weights_gradients_and_the_loss_scale_can_be_anchored_by_name(poptorch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), WithLoss())
    opts = poptorch.Options().deviceIterations(2)
    opts.anchorTensor("gradient", "Gradient___0.weight", poptorch.OutputMode.All)
    opts.anchorTensor("weight", "UpdatedVar___0.weight")
    opts.anchorTensor("scale", "finalLossScale")
    before = model[0].weight.detach().clone()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=4.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor(torch.ones(2, 2))
    gradients = executor.getAnchoredTensor("gradient")
    torch.testing.assert_close(executor.getAnchoredTensor("weight"), before - 0.5 * gradients.sum(0))
    assert float(executor.getAnchoredTensor("scale")) == 4.0 and gradients.shape == (2, 1, 2)
    assert {"0.weight", "1.scale", "Gradient___0.weight", "loss", "input"} <= set(executor.getTensorNames())


def test_a_tensor_that_only_the_sdk_has_a_name_for_cannot_be_anchored(poptorch):
    opts = poptorch.Options()
    opts.anchorTensor("x", "Relu:0/1")
    with pytest.raises(poptorch.Error, match=r"anchorTensor\('x', 'Relu:0/1'\).*It knows scale, Gradient___scale"):
        poptorch.trainingModel(WithLoss(), opts)(torch.ones(1))


def test_an_executor_that_is_not_compiled_can_be_saved(poptorch, tmp_path):
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 1), poptorch.Options().deviceIterations(2))
    restored = pickle.loads(pickle.dumps(executor))
    assert torch.equal(restored(torch.ones(4, 2)), executor(torch.ones(4, 2)))


def test_after_a_failed_compiling_the_model_can_be_wrapped_again(poptorch):
    model = Losses(lambda x: x.sum())
    executor = poptorch.trainingModel(model)
    with pytest.raises(poptorch.Error, match="find a loss"):
        executor(torch.ones(1, 2))
    executor.destroy()
    assert type(model) is Losses
    model.losses = mse
    poptorch.trainingModel(model)(torch.ones(1, 2))
