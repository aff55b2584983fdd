"""Which backend is taken, and what an IPUConfig becomes as poptorch.Options."""

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ipu_trainer.simulator as poptorch
from ipu_trainer import IPUConfig
from ipu_trainer.backends import choose_backend, sdk
from ipu_trainer.backends.poptorch_options import executable_cache, make_options
from ipu_trainer.cli import main


def fake_sdk(monkeypatch, available=True, version=21):
    """A poptorch that answers as the SDK's does: the outside is faked, not the package."""
    module = types.ModuleType("poptorch")
    module.__version__ = "3.4.0"
    module.__spec__ = types.SimpleNamespace(origin="somewhere")
    module.ipuHardwareIsAvailable = lambda: available
    module.ipuHardwareVersion = lambda: version
    monkeypatch.setitem(sys.modules, "poptorch", module)
    monkeypatch.setitem(sys.modules, "popart", types.ModuleType("popart"))


def without_sdk(monkeypatch):
    monkeypatch.delitem(sys.modules, "poptorch", raising=False)
    monkeypatch.setattr(sdk.importlib.util, "find_spec", lambda name: None)


def test_auto_takes_an_ipu_that_answers_else_the_host_and_never_the_simulator(monkeypatch):
    with monkeypatch.context() as patch:
        without_sdk(patch)
        choice = choose_backend("auto")
        assert choice.name == "host" and "poptorch is not installed" in choice.reason
    with monkeypatch.context() as patch:
        fake_sdk(patch, available=False)
        choice = choose_backend("auto")
        assert choice.name == "host" and "no IPU answers" in choice.reason
    with monkeypatch.context() as patch:
        fake_sdk(patch, version=1)
        assert "hardware version 1 is not a Mk2" in choose_backend("auto").reason
    with monkeypatch.context() as patch:
        fake_sdk(patch)
        choice = choose_backend("auto")
        assert choice.name == "sdk" and choice.has_executors and "an IPU answers" in choice.reason
    assert choose_backend("simulated").poptorch is poptorch
    assert not choose_backend("host").has_executors


def test_what_is_missing_is_said(monkeypatch):
    without_sdk(monkeypatch)
    with pytest.raises(ValueError, match="poptorch is not installed.*--backend simulated.*doctor"):
        choose_backend("sdk")
    with pytest.raises(ValueError, match="not one of auto, sdk, simulated, host"):
        choose_backend("ipu")
    with pytest.raises(ValueError, match="no CUDA device"):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        choose_backend("simulated", "cuda")


def test_a_poptorch_that_cannot_be_imported_is_no_crash(monkeypatch, tmp_path):
    (tmp_path / "poptorch.py").write_text("assert False, 'expected torch 2.0.1'")
    monkeypatch.delitem(sys.modules, "poptorch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = sdk.probe()
    assert not found.is_usable and "expected torch 2.0.1" in found.obstacle
    assert choose_backend("auto").name == "host"


def test_doctor_prints_what_is_there_and_what_auto_takes(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "transformers", "auto takes", "backend sdk", "backend simulated", torch.__version__):
        assert word in out


CONFIG = IPUConfig(
    layers_per_ipu=(3, 3, 3, 3),
    replication_factor=4,
    gradient_accumulation_steps=16,
    device_iterations=2,
    inference_replication_factor=2,
    inference_device_iterations=5,
    matmul_proportion=(0.1, 0.2, 0.3, 0.4),
    optimizer_state_offchip=True,
    replicated_tensor_sharding=True,
    output_mode="sum",
    seed=7,
)


def test_a_configuration_becomes_options():
    backend = choose_backend("simulated")
    training = make_options(CONFIG, backend)
    assert (training.replication_factor, training.device_iterations) == (4, 2)
    assert training.Training.gradient_accumulation == 16
    assert training.output_mode == poptorch.OutputMode.Sum
    assert training.random_seed == 7
    assert training.available_memory_proportion == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
    location = training.TensorLocations.location_optimizer
    assert location["onChip"] == 0 and location["useReplicatedTensorSharding"] == 1
    inference = make_options(CONFIG, backend, for_inference=True)
    assert (inference.replication_factor, inference.device_iterations) == (2, 5)
    assert isinstance(inference._execution_strategy, poptorch.ShardedExecution)
    assert inference.output_mode == poptorch.OutputMode.All


def test_options_leave_the_hosts_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    make_options(CONFIG, choose_backend("simulated"), seed=11)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_executable_cache_is_the_configurations_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.delenv("POPLAR_EXECUTABLE_CACHE_DIR", raising=False)
    assert executable_cache(IPUConfig()) is None
    monkeypatch.setenv("POPLAR_EXECUTABLE_CACHE_DIR", str(tmp_path / "environment"))
    assert executable_cache(IPUConfig()) == tmp_path / "environment"
    assert executable_cache(IPUConfig(executable_cache_dir=str(tmp_path / "own"))) == tmp_path / "own"
    assert executable_cache(IPUConfig(executable_cache_dir="disabled")) is None
    options = make_options(IPUConfig(), choose_backend("simulated"))
    assert str(tmp_path / "environment") in str(options.toDict())


@pytest.mark.parametrize("for_inference", [False, True])
def test_a_disabled_executable_cache_stays_so_whatever_the_environment_says(monkeypatch, for_inference):
    monkeypatch.delenv("POPLAR_EXECUTABLE_CACHE_DIR", raising=False)
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/somewhere")
    for named, caches in (("disabled", False), ("", True), ("/else", True)):
        config = IPUConfig(executable_cache_dir=named)
        popart = make_options(config, choose_backend("simulated"), for_inference)._Popart.options
        assert popart["enableEngineCaching"] is caches
        assert not caches or popart["cachePath"] == (named or "/somewhere")


def test_processes_without_a_launcher_for_ipus_are_refused(monkeypatch):
    from ipu_trainer.backends.base import Backend
    from ipu_trainer.simulator.options import popart_enums

    real = Backend("sdk", "", poptorch, popart_enums)  # the simulator in the SDK's place: the rule is the SDK's
    with pytest.raises(ValueError, match="2 processes were started, but poptorch knows 1.*poprun"):
        make_options(IPUConfig(), real, process=(0, 2))
    options = make_options(IPUConfig(), choose_backend("simulated"), process=(1, 2))
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)


@settings(max_examples=25, deadline=None)
@given(
    replicas=st.sampled_from([1, 2, 4]),
    accumulation=st.integers(1, 40),
    iterations=st.integers(1, 4),
    ipus=st.integers(1, 4),
    proportion=st.floats(0.05, 0.9),
    flags=st.tuples(*[st.booleans()] * 5),
    mode=st.sampled_from(["all", "sum", "final"]),
    seed=st.one_of(st.none(), st.integers(1, 1000)),
    for_inference=st.booleans(),
)
def test_every_option_is_optimum_graphcores(
    replicas, accumulation, iterations, ipus, proportion, flags, mode, seed, for_inference
):
    pytest.importorskip("optimum.graphcore", reason="optimum-graphcore is on the Pod stack alone")
    poptorch.install()
    from optimum.graphcore import IPUConfig as OptimumConfig

    offchip, sharding, partials, scaling, explicit = flags
    values = {
        "layers_per_ipu": [1] * ipus,
        "replication_factor": replicas,
        "gradient_accumulation_steps": accumulation,
        "device_iterations": iterations,
        "matmul_proportion": proportion,
        "optimizer_state_offchip": offchip,
        "replicated_tensor_sharding": sharding,
        "enable_half_partials": partials,
        "auto_loss_scaling": scaling,
        "explicit_ir_inference": explicit and not for_inference,  # 0.7.1 has a fault there: options._popart.set
        "output_mode": mode,
        "seed": seed,
    }
    theirs = OptimumConfig(**values).to_options(for_inference=for_inference).toDict()
    ours = make_options(IPUConfig.from_dict(values), choose_backend("simulated"), for_inference).toDict()
    for options in (theirs, ours):
        options.pop("saveInitializersToFile", None)
    assert ours == theirs
