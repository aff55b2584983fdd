"""UserError: a mistake that the user can correct, said in one line with the values, the rule and the next move."""

from __future__ import annotations

import contextlib
import dis
from typing import Iterator


class UserError(ValueError):
    """`ipu-trainer` prints its message alone; any other ValueError is a fault of this package and shows its traceback."""


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Around a library's call that reads what a user gave: its ValueError, ImportError or OSError becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def is_user_error(error: BaseException) -> bool:
    """Whether its message alone says what to do: a UserError, or what the system says of a file, a disk or a connection.

    So is a plain ValueError that a `raise` statement of this package made, where UserError has not arrived yet.
    """
    if isinstance(error, UserError) or (
        isinstance(error, OSError) and (error.errno is not None or _is_raised_here(error))
    ):
        return True
    return isinstance(error, ValueError) and _is_raised_here(error)


def _is_raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("ipu_trainer."):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
