"""IPUConfig -> poptorch.Options, for the SDK and the simulator alike.

Sets everything that optimum-graphcore's `IPUConfig.to_options` sets, to the same values
(https://github.com/huggingface/optimum-graphcore/blob/v0.7.1/optimum/graphcore/ipu_configuration.py).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Optional, Tuple

import torch

from ipu_trainer.backends import sdk
from ipu_trainer.backends.base import Backend
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError

_OUTPUT_MODES = {"all": "All", "sum": "Sum", "final": "Final", "default": "Default"}


def make_options(
    config: IPUConfig,
    backend: Backend,
    for_inference: bool = False,
    seed: Optional[int] = None,
    compile_only: bool = False,
    replicas: Optional[int] = None,
    process: Tuple[int, int] = (0, 1),
) -> Any:
    """Options of the backend's namespace for training, or with for_inference for evaluation.

    seed is the default for a config without one. replicas are those of this process (default: the config's); a launcher such
    as poprun divides them among processes, of which this one is process = (index, count).
    compile_only targets absent IPUs. Raises UserError for processes that no launcher of IPUs started.
    """
    poptorch, popart = backend.poptorch, backend.popart
    used = config.for_inference() if for_inference else config
    options = sdk.options_class(poptorch)() if backend.name == "sdk" else poptorch.Options()
    options.autoRoundNumIPUs(True)
    if not type(options).__module__.startswith("popdist"):  # popdist has them from poprun, and refuses others
        options.replicationFactor(used.replication_factor if replicas is None else replicas)
    options.deviceIterations(used.device_iterations)
    if not for_inference:  # processes evaluate different samples and exchange nothing
        _set_processes(options, backend, process)
    if not for_inference:
        options.Training.gradientAccumulation(used.gradient_accumulation_steps)
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
        if used.auto_loss_scaling:
            options.Training.setAutomaticLossScaling(True)
    mode = "All" if for_inference else _OUTPUT_MODES[used.output_mode]
    options.outputMode(getattr(poptorch.OutputMode, mode))
    _set_seed(options, seed if used.seed is None else used.seed)
    options.TensorLocations.setOptimizerLocation(
        poptorch.TensorLocationSettings()
        .useOnChipStorage(not used.optimizer_state_offchip)
        .useReplicatedTensorSharding(used.replicated_tensor_sharding and options.replication_factor > 1)
    )
    strategy = poptorch.ShardedExecution if for_inference else poptorch.PipelinedExecution
    options.setExecutionStrategy(strategy(poptorch.AutoStage.AutoIncrement))
    if compile_only:
        options.useOfflineIpuTarget()
    options.setAvailableMemoryProportion(
        {f"IPU{ipu}": proportion for ipu, proportion in enumerate(_matmul_proportions(used))}
    )
    folder = executable_cache(used)
    if folder is not None:
        options.enableExecutableCaching(str(folder))
    elif used.executable_cache_dir == "disabled":  # POPTORCH_CACHE_DIR may have switched it on
        options.enableExecutableCaching(None)
    options._Popart.set("saveInitializersToFile", _initializers_file())
    options.Precision.enableStochasticRounding(not for_inference)
    if used.enable_half_partials:
        options.Precision.setPartialsType(torch.float16)
    _set_popart(options, popart)
    if for_inference and used.explicit_ir_inference:
        options._Popart.set("enableExplicitIR", True)
    return options


def executable_cache(config: IPUConfig) -> Optional[Path]:
    """The folder for compiled executables: the config's, else POPLAR_EXECUTABLE_CACHE_DIR's; "disabled" is none."""
    name = config.executable_cache_dir or os.environ.get("POPLAR_EXECUTABLE_CACHE_DIR", "")
    return None if name in ("", "disabled") else Path(name).expanduser()


def _matmul_proportions(config: IPUConfig) -> Any:
    value = config.matmul_proportion
    assert config.ipus_per_replica is not None
    return value if isinstance(value, tuple) else (value,) * config.ipus_per_replica


def _set_seed(options: Any, seed: Optional[int]) -> None:
    """Seed the device without torch, which randomSeed() seeds too: the order of samples must not depend on the backend."""
    if seed is None:
        return
    state = torch.get_rng_state()
    options.randomSeed(seed)
    torch.set_rng_state(state)


def _set_processes(options: Any, backend: Backend, process: Tuple[int, int]) -> None:
    index, count = process
    if int(options.Distributed.numProcesses) == count:
        return
    if backend.name == "simulated":
        options.Distributed.configureProcessId(index, count)
        return
    raise UserError(
        f"{count} processes were started, but poptorch knows {options.Distributed.numProcesses}: their gradients would "
        "not be summed. Start processes with IPUs through poprun (scripts/poprun_chest_xray.sh), not torchrun."
    )


def _set_popart(options: Any, popart: Any) -> None:
    for name, value in (
        # Only needed tensors are streamed back to the host.
        ("disableGradAccumulationTensorStreams", True),
        # Weight updates of different IPUs run side by side.
        (
            "accumulateOuterFragmentSettings.schedule",
            int(popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized),
        ),
        ("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"]),
        ("outlineThreshold", 10.0),
        ("subgraphCopyingStrategy", int(popart.SubgraphCopyingStrategy.JustInTime)),
        ("scheduleNonWeightUpdateGradientConsumersEarly", True),
    ):
        options._Popart.set(name, value)
    options._Popart.setPatterns(
        {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True}
    )
    options._Popart.set("engineOptions", {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"})


def _initializers_file() -> str:
    """A name for PopART to write initial weights to, which is faster than passing them through protobuf."""
    handle, name = tempfile.mkstemp(prefix="ipu_trainer_", suffix=".onnx_data")
    os.close(handle)
    Path(name).unlink()
    return name
