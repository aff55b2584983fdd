"""poptorch.Options: what a program asks of the device.

Every setter and default is poptorch's. A setting changes numbers, and the engine obeys it; or describes the device (memory,
tiles, streams), and affects reports of memory and time only; or cannot be honoured, and compilation refuses it (see
compilation.py).
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Dict, List, Optional

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator import enums
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.closed_dictionary import OptionsDict
from ipu_trainer.simulator.options.options_file import apply_file
from ipu_trainer.simulator.options.options_groups import (
    CompilationProgress,
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from ipu_trainer.simulator.options.strategies import PipelinedExecution, _IExecutionStrategy

DEFAULT_SOURCE_LOCATION_EXCLUDES = ["install/poptorch", "site-packages/torch", "site-packages/poptorch"]
# Source: popart::SyntheticDataMode, Off 0, Zeros 1, RandomNormal 2.
SYNTHETIC_OFF, _SYNTHETIC_RANDOM_NORMAL = 0, 2


class Options(OptionsDict):
    """All settings of compiler and device, apart from the model and the optimizer.

    The first executor or data loader that uses the object freezes it; `clone()` gives one that can be changed.
    """

    def __init__(self) -> None:
        self._jit = _JitOptions()
        self._popart = _PopartOptions()
        self._graphProcessing = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        self._source_location_excludes = list(DEFAULT_SOURCE_LOCATION_EXCLUDES)
        self._progress_bar = CompilationProgress()
        self._relax_optimizer_checks = False
        self._show_compilation_progress_bar = True
        self._module_namescope_enabled = True
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            available_memory_proportion={},
        )
        cache = os.environ.get("POPTORCH_CACHE_DIR", "")
        if cache:
            logger.info("POPTORCH_CACHE_DIR is set: setting cache path to %s", cache)
            self.enableExecutableCaching(cache)
        self.from_json(os.environ.get("POPTORCH_DEFAULT_OPTIONS", "{}"))

    # Groups.

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors live."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """Several processes."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """Deprecated."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Number formats and rounding."""
        return self._graphProcessing

    @property
    def Training(self) -> _TrainingOptions:
        """Accumulation and reduction of gradients."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    # Batching and outputs.

    def deviceIterations(self, device_iterations: int) -> Options:
        """Weight updates (inference: micro-batches per replica) of one host step."""
        return self._put(device_iterations=device_iterations)

    def replicationFactor(self, replication_factor: int) -> Options:
        """Data-parallel copies of the model."""
        return self._put(replication_factor=replication_factor)

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> Options:
        """Give all replicas of a group the same inputs. Raises ValueError unless the size divides the replicas."""
        if input_group_type == enums.CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, enums.CommGroupType.Consecutive
        if input_group_type == enums.CommGroupType.All:
            raise UserError("input_group_type cannot be All")
        if self.replication_factor < input_group_size:
            raise UserError("input_group_size cannot be larger than replication_factor")
        if self.replication_factor % input_group_size != 0:
            raise UserError("input_group_size must be a factor of replication_factor")
        return self._put(input_group_size=input_group_size, input_cgt=input_group_type)

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: Optional[int] = None) -> Options:
        """Which micro-batches' outputs a call returns; the period is for EveryN."""
        assert isinstance(output_mode, enums.OutputMode)
        if output_mode == enums.OutputMode.EveryN:
            assert output_return_period and output_return_period > 0, (
                "EveryN anchor must have output_return_period set to valid positive integer"
            )
        elif output_return_period:
            logger.info("Anchor return period argument ignored with output_mode set to %s", output_mode)
        return self._put(output_mode=output_mode.value, output_return_period=output_return_period or 1)

    def defaultOutputMode(self) -> bool:
        """Whether no mode was set."""
        return bool(self.output_mode == enums.OutputMode.Default)

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Return a tensor of the graph by name. Compilation refuses names that the simulator does not have."""
        period = output_return_period if output_mode == enums.OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> None:
        """Whether buffers are the same on all replicas; False gives each replica its own copy."""
        self.set(broadcast_buffers=broadcast_buffers)

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        """Buffers that copyNamedBuffersToDevice() writes."""
        self._Popart.set("updatableNamedBuffers", buffers)
        return self

    # Placement and device.

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Options:
        """Pipelined (default), sharded or phased execution."""
        assert isinstance(strategy, _IExecutionStrategy)
        self._execution_strategy = strategy
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        """Reserve the next power of two where the model uses another number of IPUs."""
        return self._put(auto_round_num_ipus=auto_round_num_ipus)

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> None:
        """Share of memory that convolutions and matrix products may use, per "IPU<number>"."""
        proportions = {}
        for key, proportion in available_memory_proportion.items():
            assert key.startswith("IPU"), (
                'Available memory proportions are expected to be in a dictionary of {"IPU0": 0.5} where the 0 in IPU '
                f"is the index of the IPU. Invalid key: {key}"
            )
            proportions[int(key[3:])] = proportion
        self.createOrSet(available_memory_proportion=proportions)

    def connectionType(self, connection_type: enums.ConnectionType) -> Options:
        """When to attach to the device."""
        assert isinstance(connection_type, enums.ConnectionType)
        return self._put(connection_type=connection_type.value)

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Options:
        """Which IPUs synchronise with each other."""
        assert isinstance(sync_pattern, enums.SyncPattern)
        return self._put(sync_pattern=sync_pattern.value)

    def useIpuId(self, ipu_id: int) -> Options:
        """Use this device."""
        assert isinstance(ipu_id, int)
        return self._put(ipu_id=ipu_id)

    def useIpuModel(self, use_model: bool) -> Options:
        """Use the SDK's model of an IPU. No effect: every simulated device is a model."""
        return self._put(use_model=use_model)

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile only."""
        self.connectionType(enums.ConnectionType.Never)
        return self._put(ipu_version=ipu_version)

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        """Folder in which the SDK caches executables; None switches it off. The simulator has nothing to cache."""
        if path is None:
            self._Popart.set("enableEngineCaching", False)
        else:
            self._Popart.set("cachePath", path)
            self._Popart.set("enableEngineCaching", True)
        return self

    # Numbers.

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the device's generators and torch's default one."""
        assert isinstance(random_seed, int)
        torch.manual_seed(random_seed)
        return self._put(random_seed=random_seed)

    def enableStableNorm(self, enabled: bool) -> Options:
        """Compute variances in two passes. PyTorch always does."""
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        """Random inputs on the device instead of the call's, to measure without transfers."""
        self._Popart.set("syntheticDataMode", _SYNTHETIC_RANDOM_NORMAL if enabled else SYNTHETIC_OFF)
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        """Do not warn about optimizer attributes that the device ignores."""
        self._relax_optimizer_checks = relax
        return self

    # Logs, names, files.

    def logDir(self, log_dir: str) -> Options:
        """Where logs go."""
        return self._put(log_dir=log_dir)

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        """How often a compiler message may repeat; None for no limit."""
        return self._put(max_repeat_logs=(1 << 64) - 1 if max_lines is None else max_lines)

    def modelName(self, name: str) -> Options:
        """The model's name in reports."""
        return self._put(model_name=name)

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        """Set Poplar's options for reports. The simulator writes none."""
        from_environment = os.environ.get("POPLAR_ENGINE_OPTIONS", "")
        if any(k in from_environment for k in ("debug.allowOutOfMemory", "autoReport.directory", "autoReport.all")):
            logger.warning(
                "Profiling setting overridden by environment variable. Check content of POPLAR_ENGINE_OPTIONS."
            )
        engine = dict(self._popart.options.get("engineOptions", {}))
        engine["debug.allowOutOfMemory"] = "true"
        engine["autoReport.directory"] = profile_dir or "."
        engine["autoReport.all"] = "true"
        self._popart.setEngineOptions(engine)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        """Count cycles of each run."""
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def disableModuleNamescope(self) -> Options:
        """Do not name operators after modules."""
        self._module_namescope_enabled = False
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        """Paths that are not reported as the source of an operator."""
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        """More such paths."""
        self._source_location_excludes += excludes
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Whether compilation shows its progress, and so records its time."""
        self._show_compilation_progress_bar = show
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Apply a file with one call per line, such as `deviceIterations(4)`. Raises ConfigFileError."""
        apply_file(self, filepath)
        return self

    def from_json(self, string: str) -> Options:
        """Apply a JSON object of "path.to.setter": argument or list of arguments; "Enum.Name" is an enumerator."""
        for path, value in json.loads(string).items():
            setter: Any = self
            for name in path.split("."):
                setter = getattr(setter, name)
            if isinstance(value, list):
                setter(*value)
            else:
                setter(_enumerator(value))
        return self

    def toDict(self) -> Dict[str, Any]:
        """All options in one flat dictionary, as the compiler gets them."""
        assert not self.defaultOutputMode(), "An output mode must be picked before serialisation"
        out: Dict[str, Any] = dict(self._execution_strategy.backendOptions())
        out.update(self._popart.options)
        out = super().update(out)
        for group in (self._training, self._distributed, self._tensor_locations):
            out = group.update(out)
        if self._show_compilation_progress_bar:
            out["compilation_progress_bar_fn"] = self._progress_bar
        return out

    def clone(self) -> Options:
        """A copy that can be changed."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        properties = sorted(name for name in dir(type(self)) if isinstance(getattr(type(self), name), property))
        parts = [f"{k}={v!r}" for k, v in self._values.items()]
        return f"{type(self).__name__}(" + ", ".join(parts + [f"{p}={getattr(self, p)}" for p in properties]) + ")"


class Attribute:
    """Attaches attributes to operators of the SDK's graph, such as hints for outlining. Nothing here reads them."""

    def __init__(self, **kwargs: Dict[str, Any]) -> None:
        for group, attributes in kwargs.items():
            if not isinstance(attributes, dict):
                raise UserError(f"Attribute {group} needs a dictionary of names and values, not {attributes!r}")
        self._kwargs = kwargs

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


def _enumerator(value: Any) -> Any:
    if not isinstance(value, str) or value.count(".") != 1:
        return value
    enum_name, name = value.split(".")
    return getattr(getattr(enums, enum_name, None), name, value)
