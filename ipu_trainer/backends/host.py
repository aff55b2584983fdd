"""Plain PyTorch on a GPU or a CPU: Trainer's own loop, no executor."""

from __future__ import annotations

from ipu_trainer.backends.base import Backend


def host_backend(reason: str) -> Backend:
    """The host, which is always there."""
    return Backend("host", reason, device="GPU or CPU of this machine")
