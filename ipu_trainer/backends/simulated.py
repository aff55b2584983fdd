"""The simulator as a backend: poptorch's API on this machine's CPU or GPU."""

from __future__ import annotations

from ipu_trainer.backends.base import Backend


def simulated_backend(reason: str, device: str = "") -> Backend:
    """The simulator, computing on the torch device of that name; empty keeps the one in use, at first "cpu".

    Raises ValueError for a device that torch does not have here.
    """
    from ipu_trainer import simulator
    from ipu_trainer.simulator.execution.torch_device import torch_device
    from ipu_trainer.simulator.sdk import popart_enums

    if device:
        simulator.use_torch_device(device)
    return Backend("simulated", reason, simulator, popart_enums, f"simulated IPUs on {torch_device()}")
