"""The execution of a trainer, chosen once from its arguments."""

from __future__ import annotations

from typing import Any, Tuple

from ipu_trainer.backends import Backend, choose_backend
from ipu_trainer.training.device.device_execution import DeviceExecution
from ipu_trainer.training.execution import Execution
from ipu_trainer.training.host.host_execution import HostExecution


def choose_execution(trainer: Any, args: Any) -> Tuple[Backend, Execution]:
    """(backend, execution) as args say. Raises UserError for a backend that is not here, or arguments that it cannot honour."""
    place = (getattr(args, "simulator_device", ""), getattr(args, "compile_only", False))
    backend = choose_backend(getattr(args, "backend", "auto"), *place)
    if backend.has_executors:
        return backend, DeviceExecution(trainer, backend)
    return backend, HostExecution(trainer)
