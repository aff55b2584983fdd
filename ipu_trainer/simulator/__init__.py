"""poptorch's public API, with IPU semantics, on CPU or CUDA.

    import ipu_trainer.simulator as poptorch

runs programs for IPUs without an IPU: it computes what the device would compute, refuses what the compiler would refuse, and
measures the FLOPs and memory of each pipeline stage. docs/simulator.md lists what is faithful and what is not. Needs torch alone.
"""

from __future__ import annotations

from ipu_trainer.simulator import enums, ops, optim, options
from ipu_trainer.simulator.analysis import trace
from ipu_trainer.simulator.arguments.nested_values import ICustomArgParser, registerCustomArgParser
from ipu_trainer.simulator.data.async_loader import AsynchronousDataAccessor, poptorchAtExit
from ipu_trainer.simulator.data.loader import DataLoader
from ipu_trainer.simulator.enums import *  # noqa: F403
from ipu_trainer.simulator.errors import Error, RecoverableError, UnrecoverableError, createPoptorchError
from ipu_trainer.simulator.execution.coalescing import coalesce_micro_batches, fold_micro_batches
from ipu_trainer.simulator.execution.compilation import registerPostCompileHook, registerPreCompileHook
from ipu_trainer.simulator.execution.devices import ipuHardwareIsAvailable, ipuHardwareVersion, use_torch_device
from ipu_trainer.simulator.execution.executor import PoplarExecutor
from ipu_trainer.simulator.execution.models import inferenceModel, load, trainingModel
from ipu_trainer.simulator.forward.blocks import BlockObserver, ExecutedBlock
from ipu_trainer.simulator.forward.context import isRunningOnIpu
from ipu_trainer.simulator.logs import setLogLevel
from ipu_trainer.simulator.ops import *  # noqa: F403
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
    "AsynchronousDataAccessor",
    "Attribute",
    "BlockId",
    "BlockObserver",
    "ConfigFileError",
    "DataLoader",
    "Error",
    "ExecutedBlock",
    "ICustomArgParser",
    "NotRunnableError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
    "UnrecoverableError",
    "accessAttributes",
    "coalesce_micro_batches",
    "createPoptorchError",
    "enums",
    "fold_micro_batches",
    "getIpuTensorId",
    "importPoptorchMetadataFromFile",
    "inferenceModel",
    "install",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "isRunningOnIpu",
    "load",
    "module_repr",
    "ops",
    "optim",
    "options",
    "poptorchAtExit",
    "poptorch_core",
    "print",
    "profiling",
    "registerCustomArgParser",
    "registerGeometricCustomArgParsers",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "register_custom_op",
    "run_module",
    "run_script",
    "setLogLevel",
    "testing",
    "trace",
    "trainingModel",
    "use_torch_device",
]
__all__ += [*enums.__all__, *ops.__all__]
