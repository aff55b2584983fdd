"""Which executors hold which devices. IPUs are exclusive: a second program, or executor, has to wait for the first."""

from __future__ import annotations

import weakref
from typing import Any, Dict, Optional

from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.logs import logger

_held: Dict[int, weakref.ref[Any]] = {}  # id of a device that was asked for by number -> its executor


def acquire(executor: Any, num_ipus: int, device_id: Optional[int]) -> None:
    """Take devices for the executor. Those asked for by number are exclusive; of the others there are enough.

    Raises Error if another executor holds the device.
    """
    if device_id is not None:
        holder = None if device_id not in _held else _held[device_id]()
        if holder is not None and holder is not executor:
            raise compiler_error(
                f"Failed to acquire device Id {device_id} ({num_ipus} IPUs): another executor is attached to it. Call "
                "detachFromDevice() or destroy() on that one first."
            )
        _held[device_id] = weakref.ref(executor)
    logger.debug("Acquired %d IPU(s): running on device Id %d", num_ipus, device_id or 0)


def release(executor: Any) -> None:
    """Give the executor's devices back."""
    for device_id in [key for key, holder in _held.items() if holder() is executor]:
        del _held[device_id]
