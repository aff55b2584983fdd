"""The groups of poptorch.Options: Precision, Training, Distributed, TensorLocations, Jit and the compiler's."""

from __future__ import annotations

import copy
import datetime
import os
from typing import Any, Dict, List, Optional, Set, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator import enums
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.closed_dictionary import OptionsDict


class CompilationProgress:
    """What showCompilationProgressBar records: the duration of the last compilation."""

    def __init__(self) -> None:
        self.compilation_time: Optional[datetime.timedelta] = None


class _PopartOptions:
    """Free-form settings of the compiler. Names are checked when the model is compiled, not here."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {}
        self.set("instrumentWithHardwareCycleCounter", False)
        self.set("rearrangeAnchorsOnHost", False)

    def set(self, key: str, value: Union[int, float, str, List[str], Set[str], Dict[str, Any]]) -> _PopartOptions:
        """Set any option by name. Raises AttributeError if the options are frozen."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        """Options of Poplar's engine."""
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        """Switch graph rewrites on or off by name, starting from a level."""
        assert isinstance(level, int)
        assert isinstance(patterns, dict)
        self.set("patterns_level", level)
        return self.set("patterns", patterns)

    def __deepcopy__(self, memo: Dict[int, Any]) -> _PopartOptions:
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(_is_frozen=False, options=copy.deepcopy(self.options, memo))
        return duplicate

    def __repr__(self) -> str:
        return f"{type(self).__name__}(" + ", ".join(f"{k}={v!r}" for k, v in self.options.items()) + ")"


class _JitOptions(OptionsDict):
    def traceModel(self, trace_model: bool) -> _JitOptions:
        """Deprecated; only False is left."""
        logger.warning(
            "[Deprecated] Do not call options.Jit.traceModel(): False is the only supported value and the default"
        )
        if trace_model:
            raise UserError("options.Jit.traceModel(True) is no longer supported")
        return self


class _PrecisionOptions(OptionsDict):
    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(self, half_float_casting: enums.HalfFloatCastingBehavior) -> _PrecisionOptions:
        """Deprecated: half meets float upward, as in PyTorch."""
        logger.warning(
            "[Deprecated] Do not call options.Precision.halfFloatCasting(): HalfUpcastToFloat is now the only "
            "supported option, and what PyTorch does"
        )
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        """Deprecated: running statistics have the type that the model gives them."""
        if not isinstance(value, bool):
            raise UserError("runningStatisticsAlwaysFloat needs to be set to a bool")
        logger.warning(
            "[Deprecated] Do not call options.Precision.runningStatisticsAlwaysFloat(): False is now the only "
            "supported option, and what PyTorch does"
        )
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        """Raise Error at division by zero, invalid operations and overflow."""
        assert isinstance(enabled, bool), "enableFloatingPointExceptions needs to be set to a bool"
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        """Round values stored in float16 up or down at random, with probabilities by distance."""
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        """The type of partial sums of matrix products: torch.float or torch.half."""
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise UserError("parameter to setPartialsType should be either torch.float or torch.half")
        self._popart_options.set("partialsTypeMatMuls", names[dtype])
        self._popart_options.set("convolutionOptions", {"partialsType": names[dtype]})
        return self


class _TrainingOptions(OptionsDict):
    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=enums.ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=enums.MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        """Micro-batches per weight update and replica."""
        return self._put(gradient_accumulation=gradient_accumulation)

    def accumulationAndReplicationReductionType(self, reduction_type: enums.ReductionType) -> _TrainingOptions:
        """Mean or Sum over the micro-batches of all replicas."""
        supported = (enums.ReductionType.Mean, enums.ReductionType.Sum)
        if not isinstance(reduction_type, enums.ReductionType) or reduction_type not in supported:
            raise UserError(
                "accumulationAndReplicationReductionType must be set to poptorch.ReductionType.Mean or "
                "poptorch.ReductionType.Sum"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        self._warnings_disabled.add("accumulation_and_replication_reduction_type")
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: enums.MeanReductionStrategy
    ) -> _TrainingOptions:
        """When the mean is computed. Running is the default where the optimizer accumulates in float16."""
        return self._put(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        """Let the device adapt the loss scale."""
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        """Spread convolutions over tiles. No effect on values."""
        self._popart_options.set("convolutionOptions", {"enableConvDithering": enabled})
        return self


class _DistributedOptions(OptionsDict):
    def __init__(self) -> None:
        self._gcd_mappings: Dict[int, Any] = {}
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        """Use one process, whatever the environment variables are."""
        return self._put(num_distributed_processes=1, distributed_process_id=0)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        """Read the number of processes and this process's index from two environment variables, now."""
        number, count = os.environ.get(var_process_id, "0"), os.environ.get(var_num_processes, "1")
        return self.configureProcessId(int(number), int(count))

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        """This process's index and the number of processes."""
        return self._put(distributed_process_id=process_id, num_distributed_processes=num_processes)

    @property
    def processId(self) -> int:
        """This process's index, from 0."""
        return int(self.distributed_process_id)

    @property
    def numProcesses(self) -> int:
        """The number of data-parallel processes."""
        return int(self.num_distributed_processes)


class TensorLocationSettings(OptionsDict):
    """Where a kind of tensor is stored. Affects memory, never values."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Tensors with fewer elements stay on the chip."""
        assert isinstance(min_elements, int)
        return self._put(minElementsForOffChip=min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Tensors with fewer elements are not sharded."""
        assert isinstance(min_elements, int)
        return self._put(minElementsForReplicatedTensorSharding=min_elements)

    def useOnChipStorage(self, use: Optional[bool] = True) -> TensorLocationSettings:
        """On the chip, off the chip, or None for the compiler's choice."""
        if use is None:
            self.deleteIfExists("onChip")
            return self
        return self._flag("onChip", use)

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Each replica stores a shard and gathers the others when needed."""
        return self._flag("useReplicatedTensorSharding", use)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Load through tiles reserved for transfers."""
        return self._flag("useIOTilesToLoad", use)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Store through tiles reserved for transfers."""
        return self._flag("useIOTilesToStore", use)

    def _flag(self, name: str, use: bool) -> TensorLocationSettings:
        assert isinstance(use, bool)
        return self._put(**{name: int(use)})


class _TensorLocationOptions(OptionsDict):
    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        """Tiles per IPU reserved for transfers: an even number from 32 to 192."""
        assert isinstance(num_tiles, int)
        assert 32 <= num_tiles <= 192 and num_tiles % 2 == 0, "numIOTiles must be an even number between 32 and 192."
        return self._put(numIOTiles=num_tiles)

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where activations are stored."""
        return self._location("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where weights are stored."""
        return self._location("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where optimizer state is stored."""
        return self._location("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where gradient accumulators are stored."""
        return self._location("location_accumulator", location)

    def _location(self, name: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        assert isinstance(location, TensorLocationSettings)
        return self._put(**{name: location.toDict()})
