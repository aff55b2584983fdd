"""The options that the compiler underneath poptorch knows: what `options._Popart.set(name, value)` may name.

poptorch accepts any name and its C++ layer rejects unknown ones when the model is compiled; so does the simulator.
Source: graphcore/poptorch, popart_compiler/source/SessionOptions.cpp (SDK 3.4).
"""

from __future__ import annotations

from typing import Any, Dict

from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.options_groups import CompilationProgress

_NAMES = """
accumulateOuterFragmentSettings.excludedVirtualGraphs accumulateOuterFragmentSettings.schedule
accumulation_and_replication_reduction_type accumulationAndReplicationReductionType accumulationFactor aliasZeroCopy
anchored_tensors auto_round_num_ipus autodiffSettings.stitchStrategy automaticLossScalingSettings.binEdgeLocation
automaticLossScalingSettings.enabled automaticLossScalingSettings.gradientTensorTrackingMethod
automaticLossScalingSettings.thresholdUpperCountProportion automaticLossScalingSettings.updatePeriod autoRecomputation
available_memory_proportion batchSerializationSettings.batchSchedule batchSerializationSettings.concatOnExecutionPhaseChange
batchSerializationSettings.concatOnPipelineStageChange batchSerializationSettings.concatOnVirtualGraphChange
batchSerializationSettings.factor batchSerializationSettings.method batchSerializationSettings.transformContext
broadcast_buffers cachePath compilation_progress_bar_fn compilationProgressTotal compileEngine connection_type
constantWeights convolutionOptions customCodeletCompileFlags customCodelets decomposeGradSum defaultBufferingDepth
defaultPrefetchBufferingDepth delayVarUpdates device_iterations disableGradAccumulationTensorStreams
disableOptimizerStateTensorStreams distributed_process_id dotChecks dotOpNames enableDistributedReplicatedGraphs
enableEngineCaching enableExplicitIR enableExplicitMainLoops enableFloatingPointChecks enableFullyConnectedPass
enableGradientAccumulation enableInplaceAmbiguityChecking enableLoadAndOffloadRNGState enableMergeExchange
enableNonStableSoftmax enableOutlining enableOutliningCopyCostPruning enablePipelining enablePrefetchDatastreams
enableReplicatedGraphs enableSerializedMatmuls enableStableNorm enableStochasticRounding enableSupportedDataTypeCasting
engineOptions ensureFp32LossScaleTensor execution_mode executionPhaseSettings.phases executionPhaseSettings.stages
explicitRecomputation exportPoplarComputationGraph exportPoplarVertexGraph finalDotOp firstDotOp gclOptions
globalReplicaOffset globalReplicationFactor gradient_accumulation groupHostSync groupNormStridedChannelGrouping
hardwareInstrumentations input_cgt input_group_size instrumentWithHardwareCycleCounter ipu_id ipu_version ipuof_configs
kahnTieBreaker location_accumulator location_activation location_optimizer location_weight log_dir logDir
looseThresholdAtPeak lstmOptions matmulOptions max_repeat_logs meanAccumulationAndReplicationReductionStrategy
mergeVarUpdate mergeVarUpdateMemThreshold model_name num_distributed_processes numIOTiles opxAliasChecking opxModifyChecking
outlineSequenceBreakCost outlineThreshold output_mode output_return_period partialsTypeMatMuls patterns patterns_level
random_seed rearrangeAnchorsOnHost rearrangeStreamsOnHost replicatedCollectivesSettings.mergeAllReduceCollectives
replicatedCollectivesSettings.prepareScheduleForMergingCollectives replication_factor reportOptions saveInitializersToFile
scheduleNonWeightUpdateGradientConsumersEarly separate_backward_phase separateCallOpPdfs serial_phases_execution
serializedPoprithmsShiftGraphsDir strictOpVersions subgraphCopyingStrategy swapLimitScheduler sync_pattern syntheticDataMode
tensors_liveness timeLimitScheduler transitiveClosureOptimizationThreshold updatableNamedBuffers use_model useHostCopyOps
virtualGraphMode
"""
_KNOWN = frozenset(_NAMES.split())


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
