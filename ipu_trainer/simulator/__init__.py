"""poptorch's public API, with IPU semantics, on CPU or CUDA.

    import ipu_trainer.simulator as poptorch

runs programs that were written for IPUs, without one: it computes what the device would compute, refuses what the
compiler would refuse, and measures what a pipeline would keep where. docs/simulator.md says what is faithful and what
is not. Imports torch and `ipu_trainer.machine` only.
"""

from __future__ import annotations

from . import (
    enums,
    ops,
    optim,
    optimum_extensions,  # noqa: F401  # registers operators
    options,
    poptorch_core,  # last: it gathers from the modules above
    profiling,
    testing,
)
from .annotations import (
    Attribute,
    BeginBlock,
    Block,
    BlockFunction,
    LegacyBeginBlockFn,
    NameScope,
    recomputationCheckpoint,
    removeBlocks,
)
from .async_data import AsynchronousDataAccessor, poptorchAtExit
from .blocks import BlockObserver, ExecutedBlock
from .context import isRunningOnIpu
from .control_flow import CPU, cond, for_loop
from .custom_ops import custom_op, register_custom_op
from .data import DataLoader
from .decoders import ctc_beam_search_decoder
from .enums import (
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
from .errors import Error, RecoverableError, UnrecoverableError, createPoptorchError
from .executor import PoplarExecutor
from .folded import fold_micro_batches
from .hooks import registerPostCompileHook, registerPreCompileHook
from .install import NotRunnableError, install, run_module, run_script
from .logs import setLogLevel
from .models import inferenceModel, load, trainingModel
from .multiconv import MultiConv
from .options import (
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
from .points import fps, nearest
from .printing import module_repr, print
from .structure import ICustomArgParser, registerCustomArgParser
from .tensor_ops import (
    dynamic_slice,
    dynamic_update,
    identity_loss,
    ipu_print_tensor,
    nop,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from .torch_device import ipuHardwareIsAvailable, ipuHardwareVersion, use_torch_device
from .unavailable import (
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
    "trainingModel",
    "use_torch_device",
]
