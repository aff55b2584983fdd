"""poptorch's exceptions, which the SDK raises from C++.

Programs catch `poptorch.Error` and match its text, so classes and prefixes are poptorch's: errors of the compiler begin with
"'poptorch_cpp_error': ", those of the Python layer with "'poptorch_py_error': ".
"""

from __future__ import annotations


class Error(Exception):
    """An error of the device, its compiler or the Python layer above them."""

    type: str = ""
    message: str = ""
    location: str = ""


class RecoverableError(Error):
    """The device can be used again after `recovery_action`."""

    recovery_action: str = ""


class UnrecoverableError(Error):
    """The device cannot be used again."""


def createPoptorchError(msg: str) -> Error:
    """An Error of the Python layer, to be raised by the caller."""
    return _error("poptorch_py_error", msg)


def compiler_error(msg: str) -> Error:
    """An Error such as the compiler raises, to be raised by the caller."""
    return _error("poptorch_cpp_error", msg)


def _error(kind: str, msg: str) -> Error:
    error = Error(f"'{kind}': {msg}")
    error.type, error.message = kind, msg
    return error
