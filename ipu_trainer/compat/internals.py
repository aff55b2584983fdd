"""Internal: one private part of another library that is read or replaced; each is declared beside the function that does it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Tuple

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Internal:
    """A private part of a library that this package touches.

    target: dotted name, the library first. first, last: releases in which it was seen to be as expected, as "2.0" (all of 2.0.x).
    test: the test that fails when the row is no longer needed, or no longer right.
    """

    target: str
    reason: str
    first: str
    last: str
    test: str

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]

    def covers_installed(self) -> bool:
        """Whether the installed release is between first and last."""
        return _release(self.first) <= _release(importlib.metadata.version(self.library)) <= _release(self.last)

    def is_known(self) -> bool:
        """Whether the installed release was seen. If not, callers leave the library as it is, and one warning says so."""
        if not self.covers_installed():
            _warn_once(self, importlib.metadata.version(self.library))
        return self.covers_installed()


@functools.lru_cache(maxsize=None)
def _warn_once(row: Internal, installed: str) -> None:
    logger.warning(
        "%s %s is outside of %s to %s, in which %s was seen: it is left as it is (%s)",
        row.library,
        installed,
        row.first,
        row.last,
        row.target,
        row.reason,
    )


def _release(version: str) -> Tuple[int, int]:
    major, minor, *_ = (version.split("+")[0] + ".0").split(".")
    return int(major), int(minor)


is_known = functools.lru_cache(maxsize=None)(Internal.is_known)  # every training step asks


@contextlib.contextmanager
def replaced(row: Internal, owner: Any, make: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block owner's attribute that `row` names is make(stock), where there is one and the release was seen."""
    name = row.target.rpartition(".")[2]
    stock = getattr(owner, name, None)
    if stock is None or not is_known(row):
        yield
        return
    setattr(owner, name, make(stock))
    try:
        yield
    finally:
        setattr(owner, name, stock)
