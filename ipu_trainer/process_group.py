"""The end of a command's torch.distributed: its threads are joined before the interpreter is taken down.

The process group's worker threads may still hold a tensor when the last collective has returned. Letting go of it needs the
interpreter: where that has begun to end, the process is aborted with "terminate called without an active exception" (SIGABRT),
after its work was done (torch 2.0.1, Python 3.8).
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from typing import Any, Iterator

# For a worker that waits for the interpreter: closing holds it while it waits for the worker (torch 2.0.1).
_SECONDS_FOR_WORKERS = 0.1


@contextlib.contextmanager
def closed_at_the_end() -> Iterator[None]:
    """Close the process group that the body opened, if it ends without an exception.

    No process waits for another here: the first one may write a long report while the others have nothing left to do.
    After an exception nothing is closed: the other processes may be waiting in a collective, and are stopped by their launcher.
    """
    others = _open_group()
    yield
    distributed = _open_group()
    if distributed is None or others is not None:
        return
    gc.collect()  # a wrapped model that lies in a reference cycle holds the group
    time.sleep(_SECONDS_FOR_WORKERS)
    distributed.destroy_process_group()


def _open_group() -> Any:
    """torch.distributed where torch is imported and a process group is open, otherwise None."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
