"""Where the simulator computes: the CPU, or one CUDA GPU."""

from __future__ import annotations

from typing import Union

import torch

_device = torch.device("cpu")


def use_torch_device(device: Union[str, torch.device]) -> None:
    """Executors made from now on compute on this device. Raises ValueError for one that torch does not have here."""
    global _device
    wanted = torch.device(device)
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(f"the simulator computes on cpu or cuda, not on {wanted}")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{wanted} was asked for, and torch {torch.__version__} sees no CUDA device. Use cpu.")
    _device = wanted


def torch_device() -> torch.device:
    """The device that new executors compute on."""
    return _device


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """True: the simulated device stands for as many IPUs as one process may have (64)."""
    return num_ipus <= 64


def ipuHardwareVersion() -> int:
    """2: the simulated device is a Mk2 IPU."""
    return 2
