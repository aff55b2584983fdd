"""UserError: a mistake that the user can correct, said in one line with the values, the rule and the next move."""

from __future__ import annotations

import contextlib
from typing import Iterator


class UserError(ValueError):
    """`ipu-trainer` prints its message alone; any other ValueError is a fault of this package and shows its traceback."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a user named is not there."""


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Around a library's call that reads what a user gave: its ValueError, ImportError or OSError becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in one of ours; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_user_error(error: BaseException) -> bool:
    """Whether its message alone says what to do: a UserError, or what the system says of a file, a disk or a connection."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)
