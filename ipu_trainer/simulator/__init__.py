"""poptorch's public API, with IPU semantics, on CPU or CUDA.

    import ipu_trainer.simulator as poptorch

runs programs that were written for IPUs, without one: it computes what the device would compute, refuses what the
compiler would refuse, and measures what a pipeline would keep where. docs/simulator.md says what is faithful and what
is not. Imports torch, `ipu_trainer.machine` and `ipu_trainer.compat.torch_*` only.
"""

from __future__ import annotations

from ipu_trainer.simulator import enums, ops, optim, options
from ipu_trainer.simulator.analysis import trace
from ipu_trainer.simulator.arguments.nested_values import ICustomArgParser, registerCustomArgParser
from ipu_trainer.simulator.data.async_loader import AsynchronousDataAccessor, poptorchAtExit
from ipu_trainer.simulator.data.loader import DataLoader
from ipu_trainer.simulator.enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from ipu_trainer.simulator.errors import Error, RecoverableError, UnrecoverableError, createPoptorchError
from ipu_trainer.simulator.execution.coalescing import coalesce_micro_batches, fold_micro_batches
from ipu_trainer.simulator.execution.compilation import registerPostCompileHook, registerPreCompileHook
from ipu_trainer.simulator.execution.devices import ipuHardwareIsAvailable, ipuHardwareVersion, use_torch_device
from ipu_trainer.simulator.execution.executor import PoplarExecutor
from ipu_trainer.simulator.execution.models import inferenceModel, load, trainingModel
from ipu_trainer.simulator.forward.blocks import BlockObserver, ExecutedBlock
from ipu_trainer.simulator.forward.context import isRunningOnIpu
from ipu_trainer.simulator.logs import setLogLevel
from ipu_trainer.simulator.ops import (
    CPU,
    BeginBlock,
    Block,
    BlockFunction,
    LegacyBeginBlockFn,
    MultiConv,
    NameScope,
    cond,
    ctc_beam_search_decoder,
    custom_op,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    ipu_print_tensor,
    nearest,
    nop,
    recomputationCheckpoint,
    removeBlocks,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from ipu_trainer.simulator.ops.custom_ops import register_custom_op
from ipu_trainer.simulator.ops.printing import module_repr, print
from ipu_trainer.simulator.options import (
    Attribute,
    BlockId,
    ConfigFileError,
    Options,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    TensorLocationSettings,
)
from ipu_trainer.simulator.sdk import (
    optimum_extensions,  # noqa: F401  # registers operators
    poptorch_core,
    profiling,
    testing,
)
from ipu_trainer.simulator.sdk.install import NotRunnableError, install, run_module, run_script
from ipu_trainer.simulator.sdk.unavailable import (
    accessAttributes,
    getIpuTensorId,
    importPoptorchMetadataFromFile,
    registerGeometricCustomArgParsers,
)

__version__ = "3.4.0+simulator"

__all__ = [
    "CPU",
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "BlockId",
    "BlockObserver",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "ExecutedBlock",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "LegacyBeginBlockFn",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "NotRunnableError",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "accessAttributes",
    "coalesce_micro_batches",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "enums",
    "fold_micro_batches",
    "for_loop",
    "fps",
    "getIpuTensorId",
    "identity_loss",
    "importPoptorchMetadataFromFile",
    "inferenceModel",
    "install",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "load",
    "module_repr",
    "nearest",
    "nop",
    "ops",
    "optim",
    "options",
    "poptorchAtExit",
    "poptorch_core",
    "print",
    "profiling",
    "recomputationCheckpoint",
    "registerCustomArgParser",
    "registerGeometricCustomArgParsers",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "register_custom_op",
    "removeBlocks",
    "run_module",
    "run_script",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "testing",
    "trace",
    "trainingModel",
    "use_torch_device",
]
