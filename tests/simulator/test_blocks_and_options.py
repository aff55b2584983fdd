"""Annotations, the rules that follow from them, and the closed dictionary of options."""

import copy
import pickle

import pytest
import torch
from simulated_models import batch, new_model


class FourBlocks(torch.nn.Module):
    def __init__(self, poptorch, ipus=(0, 1, 2, 3)):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in ipus)
        for i, (layer, ipu) in enumerate(zip(self.layers, ipus)):
            poptorch.BeginBlock(layer, f"layer{i}", ipu_id=ipu)
        self.identity_loss = poptorch.identity_loss

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x, self.identity_loss(x, "mean")


@pytest.mark.parametrize("ipus, smallest", [((0, 1, 2, 3), 7), ((0, 0, 1, 1), 3), ((0, 1, 1, 0), 5)])
def test_a_pipeline_needs_two_micro_batches_a_stage_less_one(poptorch, ipus, smallest):
    def run(accumulation):
        opts = poptorch.Options()
        opts.Training.gradientAccumulation(accumulation)
        poptorch.trainingModel(FourBlocks(poptorch, ipus), opts)(torch.ones(accumulation, 4))

    run(smallest)
    with pytest.raises(poptorch.Error, match=rf"greater than or equal to the number of pipeline stages \({smallest}\)"):
        run(smallest - 1)


def test_inference_needs_a_device_iteration_a_stage_and_sharding_needs_none(poptorch):
    model = FourBlocks(poptorch)
    with pytest.raises(poptorch.Error, match="deviceIterations must be greater than or equal to"):
        poptorch.inferenceModel(model, poptorch.Options().deviceIterations(3))(torch.ones(3, 4))
    sharded = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    poptorch.inferenceModel(model, sharded)(torch.ones(1, 4))


def test_ipus_come_in_powers_of_two(poptorch):
    model = FourBlocks(poptorch, (0, 1, 2))
    opts = poptorch.Options().deviceIterations(3)
    with pytest.raises(
        poptorch.Error, match=r"use of 3 IPUs, however PopTorch must reserve a minimum of 4.*autoRoundNumIPUs"
    ):
        poptorch.inferenceModel(model, opts)(torch.ones(3, 4))
    poptorch.inferenceModel(model, opts.clone().autoRoundNumIPUs(True))(torch.ones(3, 4))
    with pytest.raises(poptorch.Error, match=r"Too many IPUs requested \(128\)"):
        poptorch.inferenceModel(new_model(), poptorch.Options().replicationFactor(128))(torch.ones(128, 6))


def test_blocks_are_recorded_in_the_order_of_execution(poptorch):
    model = FourBlocks(poptorch, (0, 1))
    executor = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))
    executor.compile(torch.ones(2, 4))
    assert [(b.user_id, b.ipu_id) for b in executor.compilation.blocks if b.user_id] == [("layer0", 0), ("layer1", 1)]


def test_the_debug_log_says_where_every_operator_runs(poptorch, caplog):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.ReLU() for _ in range(2))
            for ipu, layer in enumerate(self.layers):
                poptorch.BeginBlock(layer, ipu_id=ipu)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x * 2)
            return x

    caplog.set_level("DEBUG", logger="poptorch::python")
    model = Model()
    poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))(torch.ones(2, 1))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Op ")]
    assert lines == [
        "Op Mul:0 mode(Pipelined), ipu(0), stage(0)",
        "Op 0/Relu:0 mode(Pipelined), ipu(0), stage(0)",
        "Op Mul:0/1 mode(Pipelined), ipu(0), stage(0)",
        "Op 1/Relu:0 mode(Pipelined), ipu(1), stage(1)",
    ]
    assert not any(layer._forward_hooks for layer in model.layers)


def test_named_stages_refuse_blocks_that_they_do_not_name(poptorch):
    opts = poptorch.Options().setExecutionStrategy(poptorch.PipelinedExecution("layer0", "layer1"))
    with pytest.raises(AssertionError, match="Unknown Block 'layer2'"):
        poptorch.inferenceModel(FourBlocks(poptorch), opts)(torch.ones(1, 4))


def test_annotations_do_nothing_off_the_device_and_can_be_removed(poptorch):
    model = FourBlocks(poptorch)
    plain = copy.deepcopy(model)
    poptorch.removeBlocks(plain)
    assert "BeginBlock(user_id=layer0, ipu_id=0)" in poptorch.module_repr(model)
    assert "BeginBlock" not in poptorch.module_repr(plain)
    assert torch.equal(model(torch.ones(1, 4))[0], plain(torch.ones(1, 4))[0])
    with pytest.raises(poptorch.Error, match="already been assigned to a block"):
        poptorch.BeginBlock(model.layers[0])
    assert pickle.loads(pickle.dumps(model)).layers[0]._forward_pre_hooks


def test_a_checkpoint_returns_what_it_was_given(poptorch):
    one, two = torch.ones(1), torch.zeros(1)
    assert poptorch.recomputationCheckpoint(one) is one
    assert poptorch.recomputationCheckpoint(one, two) == (one, two)
    assert poptorch.recomputationCheckpoint([one, two]) == [one, two]
    with pytest.raises(ValueError, match="must be tensors"):
        poptorch.recomputationCheckpoint(one, 3)


def test_an_unknown_option_and_a_wrong_type_are_assertions(poptorch):
    opts = poptorch.Options()
    with pytest.raises(AssertionError, match="Invalid option replicas"):
        opts.replicas = 3
    with pytest.raises(AssertionError, match="Unexpected type <class 'str'> for option device_iterations"):
        opts.deviceIterations("3")
    with pytest.raises(AttributeError, match="Invalid attribute"):
        _ = opts.replicas


def test_the_first_use_freezes_the_programs_object_and_copies_are_free(poptorch):
    opts = poptorch.Options()
    poptorch.inferenceModel(new_model(), opts)
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        opts.deviceIterations(2)
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        opts.Training.gradientAccumulation(2)
    assert opts.clone().deviceIterations(2).device_iterations == 2


def test_options_become_one_flat_dictionary(poptorch):
    opts = poptorch.Options().deviceIterations(4)
    with pytest.raises(AssertionError, match="An output mode must be picked"):
        opts.toDict()
    opts.outputMode(poptorch.OutputMode.Final)
    flat = opts.toDict()
    assert (flat["device_iterations"], flat["execution_mode"], flat["gradient_accumulation"]) == (4, 0, 1)


def test_the_compiler_refuses_names_that_it_does_not_know(poptorch):
    opts = poptorch.Options()
    opts._Popart.set("enableMagic", True)
    with pytest.raises(poptorch.Error, match="Unknown bool option enableMagic"):
        poptorch.inferenceModel(new_model(), opts)(batch(2)[0])


def test_an_options_file_sets_options_and_runs_nothing(poptorch, tmp_path):
    file = tmp_path / "options.cfg"
    file.write_text(
        "# comment\ndeviceIterations(3)\nTraining.gradientAccumulation(4)\noutputMode(poptorch.OutputMode.All)\n"
    )
    opts = poptorch.Options()
    opts.loadFromFile(str(file))
    assert (opts.device_iterations, opts.Training.gradient_accumulation) == (3, 4)
    marker = tmp_path / "written"
    for line in (f"deviceIterations(open({str(marker)!r}, 'w').write('x'))", "__class__.__init__()", "x = 3"):
        file.write_text(line)
        with pytest.raises((poptorch.ConfigFileError, AssertionError)):
            poptorch.Options().loadFromFile(str(file))
    assert not marker.exists()


def test_the_environment_gives_defaults(poptorch, monkeypatch):
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"deviceIterations": 5, "Training.gradientAccumulation": 3}')
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/tmp/cache")
    opts = poptorch.Options()
    assert (opts.device_iterations, opts.Training.gradient_accumulation) == (5, 3)
    assert opts._Popart.options["cachePath"] == "/tmp/cache"


def test_control_flow_runs_as_python_under_the_devices_rules(poptorch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            doubled = poptorch.for_loop(3, lambda v: [v * 2], [x])[0]
            return poptorch.cond(doubled.sum() > 10, lambda v: v + 1, [doubled], lambda v: v - 1, [doubled])[0]

    executor = poptorch.inferenceModel(Model())
    assert executor(torch.ones(2)).tolist() == [9, 9] and executor(torch.zeros(2)).tolist() == [-1, -1]
    with pytest.raises(poptorch.Error, match="only supported in inference"):
        poptorch.trainingModel(Model())(torch.ones(2))


def test_slices_and_products_have_the_values_of_their_names(poptorch):
    x = torch.arange(12.0).reshape(3, 4)
    start = torch.tensor([1])
    assert torch.equal(poptorch.dynamic_slice(x, 1, start, 2, 1), x[:, 1:3])
    updated = poptorch.dynamic_update(x, torch.zeros(3, 2), 1, start, 2)
    assert updated[:, 1:3].abs().sum() == 0 and torch.equal(updated[:, 0], x[:, 0])
    mode = poptorch.MatMulSerializationMode.OutputChannels
    assert torch.equal(poptorch.serializedMatMul(x, x.t(), mode, 3), x @ x.t())


def test_a_dynamic_slice_divides_its_dimension_and_wraps_on_the_device(poptorch):
    class Model(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

        def forward(self, x, start):
            return poptorch.dynamic_slice(x, 0, start, self.size, 1)

    x = torch.arange(6.0)
    executor = poptorch.inferenceModel(Model(3))
    executor.compile(x, torch.tensor([50]))  # values are not known while a graph is built
    assert executor(x, torch.tensor([2])).tolist() == [2, 3, 4] and executor(x, torch.tensor([5])).tolist() == [5, 0, 1]
    with pytest.raises(
        poptorch.Error, match=r"size of the slice \(4\) must be a factor of the slicing dimension \(6\)"
    ):
        poptorch.inferenceModel(Model(4))(x, torch.tensor([0]))
    with pytest.raises(poptorch.Error, match="must be different"):
        poptorch.dynamic_slice(x, 0, torch.tensor([0]), 0, 1)


def sliced(poptorch, ends):
    class Sliced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.tensor([1, 4]))
            self.plain = torch.tensor([1, 5])

        def forward(self, x, start):
            begin, end = ends(self, start)
            return x[begin:end] * 1.0

    return poptorch.inferenceModel(Sliced())(torch.arange(6.0), torch.tensor(1))


@torch.jit.script
def _scripted_span(x: torch.Tensor, most: int):
    return torch.tensor(min(x.size(0), most))


@pytest.mark.parametrize(
    "ends",
    [
        lambda _, x: (torch.tensor(1), torch.tensor(3) + 2),
        lambda model, _: (model.plain[0], model.plain[1]),
        # As DeBERTa's attention span in Transformers up to 5.17.
        lambda _, x: (torch.tensor(1), 1 + _scripted_span(x[None].expand(7), 4)),
    ],
)
def test_a_slice_between_constants_is_not_a_dynamic_one(poptorch, ends):
    assert sliced(poptorch, ends).tolist() == [1, 2, 3, 4]


def _overwritten(_, start):
    end = torch.zeros(1, dtype=torch.int64)
    end[0] = start + 4
    return torch.tensor(1), end[0]


@pytest.mark.skipif(torch.__version__ < "2.1", reason="torch 2.0 shows indexing to nobody")
@pytest.mark.parametrize(
    "ends",
    [
        lambda _, start: (start, start + 4),
        lambda _, start: (torch.tensor(1), start + 4),
        lambda _, start: torch.stack((start, start + 4)).unbind(),
        lambda model, start: (model.kept[0], model.kept[1] + 1),
        _overwritten,
    ],
)
def test_a_slice_from_a_value_of_the_device_divides_its_dimension(poptorch, ends):
    with pytest.raises(poptorch.Error, match=r"size of the slice \(4\) must be a factor"):
        sliced(poptorch, ends)


def test_a_custom_operator_is_a_registered_function(poptorch):
    with pytest.raises(poptorch.Error, match="register_custom_op"):
        poptorch.custom_op([torch.ones(1)], "Cube", "test.acme", 1, [torch.ones(1)])
    poptorch.register_custom_op("Cube", "test.acme", lambda x, scale=1.0: scale * x**3)
    result = poptorch.custom_op([torch.full((1,), 2.0)], "Cube", "test.acme", 1, [torch.ones(1)], {"scale": 0.5})
    assert result[0].tolist() == [4.0]


def test_four_bit_groups_are_unpacked_by_nibbles_of_four_words(poptorch):
    words = torch.tensor([[[0x3210, 0x7654, -0x4568, -0x124]]], dtype=torch.int32).to(torch.int16)  # 0xBA98, 0xFEDC
    out = poptorch.custom_op(
        [words, torch.ones(1, 1, 1).half(), torch.zeros(1, 1, 1).half()],
        "GroupQuantizeDecompress", "optimum.custom_ops", 1, [torch.empty(1, 16)], {"root_path": "."},
    )[0]  # fmt: skip
    assert out.tolist() == [[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]]
