"""Per thread: whether a model runs on the simulated device at the moment, and who observes it.

A global, because functions read it that a model calls within its forward (`poptorch.isRunningOnIpu()`,
`poptorch.identity_loss(...)`, a block's hook), to which no argument can be passed.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, ContextManager, Iterator, Optional

if TYPE_CHECKING:
    from ipu_trainer.simulator.forward.blocks import BlockTracker
    from ipu_trainer.simulator.forward.observer import ForwardObserver


class _Context(threading.local):
    on_ipu: bool = False
    training: bool = False
    observer: Optional[ForwardObserver] = None
    blocks: Optional[BlockTracker] = None


context = _Context()


def isRunningOnIpu() -> bool:
    """Whether the caller is part of a model that an executor is compiling or running."""
    return context.on_ipu


@contextlib.contextmanager
def on_ipu(observer: ForwardObserver, training: bool, blocks: Optional[BlockTracker] = None) -> Iterator[None]:
    """Run the body as if on the device, under observation. Restores the former state, also after an error."""
    with _state(on_ipu=True, training=training, observer=observer, blocks=blocks), observer:
        yield


def on_host() -> ContextManager[None]:
    """Run the body as if outside the model: a CPU layer within one."""
    return _state(on_ipu=False, training=False, observer=None, blocks=None)


@contextlib.contextmanager
def _state(**state: Any) -> Iterator[None]:
    before = {name: getattr(context, name) for name in state}
    vars(context).update(state)
    try:
        yield
    finally:
        vars(context).update(before)
