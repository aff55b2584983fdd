"""What Python programs use of poptorch.poptorch_core, the C++ half of poptorch: its errors and the check of options."""

from __future__ import annotations

import enum

from ipu_trainer.simulator.errors import Error, RecoverableError, UnrecoverableError
from ipu_trainer.simulator.execution.devices import ipuHardwareVersion
from ipu_trainer.simulator.forward.context import context as _context
from ipu_trainer.simulator.logs import setPopartLogLevel
from ipu_trainer.simulator.options.compiler_options import validate_options as _validateOptions
from ipu_trainer.simulator.sdk.unavailable import getIpuTensorId, importPoptorchMetadataFromFile


class TestErrorType(enum.IntEnum):
    """Kinds of errors that _throwTestError() raises."""

    __test__ = False  # not a test, for all its name

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_EXAMPLES = {
    TestErrorType.Poptorch: (Error, "poptorch_cpp_error", "an example"),
    TestErrorType.Popart: (Error, "popart_exception", "an example"),
    TestErrorType.PopartInternal: (Error, "popart_internal_exception", "an example"),
    TestErrorType.Poplibs: (Error, "poplibs_exception", "an example"),
    TestErrorType.PoplarUnrecoverable: (UnrecoverableError, "poplar_unrecoverable_runtime_error", "an example"),
    TestErrorType.PoplarUnknown: (Error, "poplar_unknown_runtime_error", "an example"),
    TestErrorType.PoplarRecoverableFullReset: (RecoverableError, "poplar_recoverable_runtime_error", "an example"),
    TestErrorType.PoplarLinkError: (Error, "poplar_link_error", "an example. Output: -lfoo not found"),
}


def _throwTestError(error_type: TestErrorType) -> None:
    """Raise an error of the kind, with all its attributes, so that a program's handling of it can be tried."""
    kind, name, message = _EXAMPLES[error_type]
    location = "throwTestError::bottomLevel()\nthrowTestError::topLevel()"
    error = kind(f"In {location}: '{name}': {message}")
    error.type, error.message, error.location = name, message, location
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


def isCompilingWithDispatcher() -> bool:
    """Whether a model is being compiled right now."""
    from ipu_trainer.simulator.forward.observer import CompilationObserver

    return isinstance(_context.observer, CompilationObserver)


__all__ = [
    "Error",
    "RecoverableError",
    "UnrecoverableError",
    "_validateOptions",
    "getIpuTensorId",
    "importPoptorchMetadataFromFile",
    "ipuHardwareVersion",
    "isCompilingWithDispatcher",
    "setPopartLogLevel",
]
