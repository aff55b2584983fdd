"""The torch device that the simulator computes on, the simulated IPUs, and which executors hold which of them."""

from __future__ import annotations

import weakref
from typing import Any, Dict, Optional, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.logs import logger

_device = torch.device("cpu")
_held: Dict[int, weakref.ref[Any]] = {}  # id of a device that was requested by number -> its executor


def use_torch_device(device: Union[str, torch.device]) -> None:
    """Executors created from now on compute on this device. Raises ValueError for one that torch does not have here."""
    global _device
    wanted = torch.device(device)
    if wanted.type not in ("cpu", "cuda"):
        raise UserError(f"the simulator computes on cpu or cuda, not on {wanted}")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{wanted} was requested, and torch {torch.__version__} sees no CUDA device. Use cpu.")
    _device = wanted


def torch_device() -> torch.device:
    """The device that new executors compute on."""
    return _device


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether num_ipus are at most 64, the most that one process may have."""
    return num_ipus <= 64


def ipuHardwareVersion() -> int:
    """2: the simulated device is a Mk2 IPU."""
    return 2


def acquire(executor: Any, num_ipus: int, device_id: Optional[int]) -> None:
    """Reserve devices for the executor. Those requested by number are exclusive; of the others there are enough.

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
    """Release the executor's devices."""
    for device_id in [key for key, holder in _held.items() if holder() is executor]:
        del _held[device_id]
