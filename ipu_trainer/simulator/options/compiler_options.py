"""The options that the compiler underneath poptorch knows: what `options._Popart.set(name, value)` may name.

poptorch accepts any name and its C++ layer rejects unknown ones when the model is compiled; so does the simulator.
Source: graphcore/poptorch, popart_compiler/source/SessionOptions.cpp (SDK 3.4).
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet

from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.options_groups import CompilationProgress

BOOLEAN: FrozenSet[str] = frozenset(
    [
        "auto_round_num_ipus",
        "use_model",
        "serial_phases_execution",
        "separate_backward_phase",
        "broadcast_buffers",
        "enableExplicitIR",
        "enableInplaceAmbiguityChecking",
        "enableLoadAndOffloadRNGState",
        "batchSerializationSettings.concatOnVirtualGraphChange",
        "batchSerializationSettings.concatOnExecutionPhaseChange",
        "batchSerializationSettings.concatOnPipelineStageChange",
        "strictOpVersions",
        "opxAliasChecking",
        "opxModifyChecking",
        "dotOpNames",
        "exportPoplarComputationGraph",
        "exportPoplarVertexGraph",
        "separateCallOpPdfs",
        "enableOutlining",
        "enableOutliningCopyCostPruning",
        "rearrangeAnchorsOnHost",
        "rearrangeStreamsOnHost",
        "enablePrefetchDatastreams",
        "enableNonStableSoftmax",
        "enableReplicatedGraphs",
        "enableGradientAccumulation",
        "instrumentWithHardwareCycleCounter",
        "enablePipelining",
        "disableGradAccumulationTensorStreams",
        "disableOptimizerStateTensorStreams",
        "compileEngine",
        "constantWeights",
        "enableEngineCaching",
        "enableMergeExchange",
        "enableFloatingPointChecks",
        "enableStochasticRounding",
        "ensureFp32LossScaleTensor",
        "explicitRecomputation",
        "enableExplicitMainLoops",
        "useHostCopyOps",
        "aliasZeroCopy",
        "delayVarUpdates",
        "enableFullyConnectedPass",
        "enableSerializedMatmuls",
        "enableStableNorm",
        "decomposeGradSum",
        "enableDistributedReplicatedGraphs",
        "groupHostSync",
        "automaticLossScalingSettings.enabled",
        "enableSupportedDataTypeCasting",
        "groupNormStridedChannelGrouping",
        "scheduleNonWeightUpdateGradientConsumersEarly",
        "replicatedCollectivesSettings.prepareScheduleForMergingCollectives",
        "replicatedCollectivesSettings.mergeAllReduceCollectives",
    ]
)
INTEGER: FrozenSet[str] = frozenset(
    [
        "device_iterations",
        "num_distributed_processes",
        "distributed_process_id",
        "ipu_version",
        "ipu_id",
        "gradient_accumulation",
        "output_return_period",
        "replication_factor",
        "input_group_size",
        "input_cgt",
        "execution_mode",
        "tensors_liveness",
        "output_mode",
        "connection_type",
        "meanAccumulationAndReplicationReductionStrategy",
        "max_repeat_logs",
        "accumulation_and_replication_reduction_type",
        "sync_pattern",
        "random_seed",
        "patterns_level",
        "autodiffSettings.stitchStrategy",
        "batchSerializationSettings.transformContext",
        "batchSerializationSettings.method",
        "batchSerializationSettings.batchSchedule",
        "autoRecomputation",
        "mergeVarUpdate",
        "virtualGraphMode",
        "syntheticDataMode",
        "subgraphCopyingStrategy",
        "accumulationAndReplicationReductionType",
        "automaticLossScalingSettings.gradientTensorTrackingMethod",
        "executionPhaseSettings.phases",
        "executionPhaseSettings.stages",
        "batchSerializationSettings.factor",
        "firstDotOp",
        "finalDotOp",
        "numIOTiles",
        "mergeVarUpdateMemThreshold",
        "looseThresholdAtPeak",
        "accumulationFactor",
        "swapLimitScheduler",
        "globalReplicationFactor",
        "globalReplicaOffset",
        "defaultBufferingDepth",
        "defaultPrefetchBufferingDepth",
        "compilationProgressTotal",
        "transitiveClosureOptimizationThreshold",
        "automaticLossScalingSettings.updatePeriod",
        "accumulateOuterFragmentSettings.schedule",
    ]
)
REAL: FrozenSet[str] = frozenset(
    [
        "outlineSequenceBreakCost",
        "outlineThreshold",
        "timeLimitScheduler",
        "automaticLossScalingSettings.thresholdUpperCountProportion",
        "automaticLossScalingSettings.binEdgeLocation",
    ]
)
TEXT: FrozenSet[str] = frozenset(
    [
        "log_dir",
        "saveInitializersToFile",
        "model_name",
        "logDir",
        "cachePath",
        "partialsTypeMatMuls",
        "customCodeletCompileFlags",
        "serializedPoprithmsShiftGraphsDir",
        "kahnTieBreaker",
    ]
)
CONTAINER: FrozenSet[str] = frozenset(
    [
        "dotChecks",
        "hardwareInstrumentations",
        "customCodelets",
        "engineOptions",
        "reportOptions",
        "convolutionOptions",
        "matmulOptions",
        "lstmOptions",
        "gclOptions",
        "updatableNamedBuffers",
        "available_memory_proportion",
        "anchored_tensors",
        "ipuof_configs",
        "patterns",
        "location_activation",
        "location_weight",
        "location_optimizer",
        "location_accumulator",
        "accumulateOuterFragmentSettings.excludedVirtualGraphs",
        "compilation_progress_bar_fn",
    ]
)
_KNOWN = BOOLEAN | INTEGER | REAL | TEXT | CONTAINER


def validate_options(options: Dict[str, Any]) -> None:
    """Check Options.toDict() as compiling does, and log each value at debug level.

    Raises Error ("Unknown ... option") for a name that the compiler does not have, and ("Unknown value type ...") for
    a value that it cannot take.
    """
    for name, value in options.items():
        if not isinstance(value, (bool, int, float, str, list, tuple, set, dict, CompilationProgress)):
            raise compiler_error(f"Unknown value type {type(value)} for option {name}")
        if name not in _KNOWN:
            kind = {bool: "bool", int: "uint64", float: "float", str: "string"}.get(type(value), "container")
            raise compiler_error(f"Unknown {kind} option {name}")
        _log(name, value)


def _log(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            logger.debug("poptorch.Options set %s[%s] to %s", name, key, item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            logger.debug("poptorch.Options added %s to %s", item, name)
    elif not isinstance(value, CompilationProgress):
        shown = str(value).lower() if isinstance(value, bool) else int(value) if isinstance(value, int) else value
        logger.debug("poptorch.Options set %s to value %s", name, shown)
