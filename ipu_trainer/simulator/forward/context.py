"""What is running right now, per thread: whether a model is on the simulated device, and who watches it.

One object instead of arguments, because it is read by functions that a model calls from the middle of its forward
(`poptorch.isRunningOnIpu()`, `poptorch.identity_loss(...)`, a block's hook), where nothing can be passed.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Iterator, Optional

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
    """Run the body as if on the device, watched. Restores what was there before, also after an error."""
    before = (context.on_ipu, context.training, context.observer, context.blocks)
    context.on_ipu, context.training, context.observer, context.blocks = True, training, observer, blocks
    try:
        with observer:
            yield
    finally:
        context.on_ipu, context.training, context.observer, context.blocks = before


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Run the body as if outside the model, such as a CPU operator in the middle of one."""
    before = (context.on_ipu, context.training, context.observer, context.blocks)
    context.on_ipu, context.training, context.observer, context.blocks = False, False, None, None
    try:
        yield
    finally:
        context.on_ipu, context.training, context.observer, context.blocks = before
