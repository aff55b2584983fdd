"""The logger "poptorch::python" and poptorch's levels for it.

Importing the simulator attaches no handler. `console()` attaches the one that the SDK attaches at import; `install()` calls
it, since programs written for the SDK expect to see the messages.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Dict, Tuple, Union

from ipu_trainer.errors import UserError

logger = logging.getLogger("poptorch::python")

# name -> (level of the C++ layers, level of Python's logging)
LEVELS: Dict[str, Tuple[int, int]] = {
    "TRACE": (0, logging.DEBUG),
    "TRACE_ALL": (0, logging.DEBUG),
    "DEBUG": (1, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL),
}
_INTERNAL = ("TRACE_ALL", "DEBUG_IR")


def setLogLevel(level: Union[str, int]) -> None:
    """Let messages of this level and above through: TRACE, DEBUG, INFO, WARN, ERR, OFF, or the old numbers 0 to 6.

    Raises ValueError for any other level.
    """
    if isinstance(level, int):
        names = [name for name, (number, _) in LEVELS.items() if number == level]
        if not names:
            raise UserError("Invalid log level integer")
        level = names[0]
    if level not in LEVELS:
        public = [name for name in sorted(LEVELS) if name not in _INTERNAL]
        listed = ", ".join(public[:-1]) + " and " + public[-1]
        raise UserError(f"Unknown log level: {level}. Valid values are {listed}")
    logger.setLevel(LEVELS[level][1])


def setPopartLogLevel(level: str) -> None:
    """Accepted, without effect: there is no PopART.

    Raises ValueError for an unknown level.
    """
    if not isinstance(level, str) or level not in LEVELS:
        raise UserError("Level must be one of " + ", ".join(LEVELS))


class _StandardError(logging.Handler):
    """Writes to whatever sys.stderr is when a message arrives, so that redirection after import works."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        record.levelname = level.lower()
        try:
            return super().format(record)
        finally:
            record.levelname = level


def console() -> Any:
    """Attach a handler that writes messages to standard error as the SDK does. Returns it; attaches it once."""
    for handler in logger.handlers:
        if isinstance(handler, _StandardError):
            return handler
    console_handler = _StandardError()
    console_handler.setFormatter(
        _Format("[%(asctime)s.%(msecs)03d] [%(name)s] [%(levelname)s] %(message)s", "%H:%M:%S")
    )
    logger.addHandler(console_handler)
    return console_handler
