"""Replacing a function of another library for a while, where its release was seen."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Iterator

from ipu_trainer.compat.internals import Internal

is_known = functools.lru_cache(maxsize=None)(Internal.is_known)  # training steps ask


@contextlib.contextmanager
def replaced(row: Internal, owner: Any, make: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block owner's attribute that `row` names is make(stock). Nothing changes where there is none, or it is unknown."""
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
