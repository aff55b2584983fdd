"""The choice of a run's backend."""

from __future__ import annotations

import copyreg
from typing import Any

from ipu_trainer.backends import sdk
from ipu_trainer.backends.base import Backend
from ipu_trainer.errors import UserError

BACKENDS = ("sdk", "simulated", "host")


def check_name(requested: str) -> None:
    """Raise UserError for a name that is no backend's."""
    if requested != "auto" and requested not in BACKENDS:
        raise UserError(f"backend {requested!r} is not one of auto, {', '.join(BACKENDS)}. Use --backend auto.")


def host_backend(reason: str) -> Backend:
    """Plain PyTorch on a GPU or a CPU, in Trainer's loop, without executors. Always available."""
    return Backend("host", reason, device="GPU or CPU of this machine")


def simulated_backend(reason: str, device: str = "") -> Backend:
    """The simulator, computing on the torch device of that name; empty keeps the one in use, at first "cpu".

    Raises UserError for a device that torch does not have here.
    """
    from ipu_trainer import simulator
    from ipu_trainer.simulator.execution.devices import torch_device
    from ipu_trainer.simulator.options import popart_enums

    if device:
        simulator.use_torch_device(device)
    return Backend("simulated", reason, simulator, popart_enums, f"simulated IPUs on {torch_device()}")


def _reduce(backend: Backend) -> Any:
    """Modules do not pickle: unpickling chooses the backend of that name again, or fails where it is missing."""
    device = backend.device.rpartition(" ")[2] if backend.name == "simulated" else ""
    return _unpickled, (backend.name, backend.reason, device)


copyreg.pickle(Backend, _reduce)


def _unpickled(name: str, reason: str, simulator_device: str) -> Backend:
    """The backend of a trainer that another process pickled. Raises UserError if this machine does not have it."""
    if name == "sdk":
        found = sdk.probe()
        if found.poptorch is None:
            raise UserError(f"this trainer was pickled on a machine with backend sdk, and here {found.obstacle}.")
        return sdk.sdk_backend(reason, found)
    return simulated_backend(reason, simulator_device) if name == "simulated" else host_backend(reason)


def choose_backend(requested: str = "auto", simulator_device: str = "", compile_only: bool = False) -> Backend:
    """The backend for `--backend requested`.

    auto chooses the SDK if an IPU answers, the simulator for a program under `ipu-trainer simulate`, else the host.
    compile_only needs poptorch, but no IPU. Raises UserError for an unknown name, or for `sdk` with what it lacks.
    """
    check_name(requested)
    if requested == "host":
        return host_backend("asked for")
    if requested == "simulated":
        return simulated_backend("asked for", simulator_device)
    found = sdk.probe()
    if found.is_usable or (compile_only and found.poptorch is not None):
        why = "asked for" if requested == "sdk" else f"auto: an IPU answers (poptorch {found.version})"
        return sdk.sdk_backend(why, found)
    if sdk.program_is_simulated():
        return simulated_backend("this program runs under `ipu-trainer simulate`", simulator_device)
    if requested == "sdk":
        raise UserError(
            f"backend sdk cannot be used: {found.obstacle}. Use --backend simulated to try the same run here, or "
            "--backend host to compute on this machine; `ipu-trainer doctor` lists what is available."
        )
    return host_backend(f"auto: {found.obstacle}")
