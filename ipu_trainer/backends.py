"""Where a run computes. This release has one backend, `host`: plain PyTorch on a GPU or a CPU.

`auto` says what it took and why; the choice is logged and saved with the results.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("host",)


@dataclass(frozen=True)
class BackendChoice:
    name: str
    reason: str


def choose_backend(requested: str = "auto") -> BackendChoice:
    """The backend for `--backend requested`. Raises ValueError for a name that this release does not have."""
    if requested == "auto":
        return BackendChoice("host", "auto: host is the backend of this release")
    if requested in BACKENDS:
        return BackendChoice(requested, "asked for")
    raise ValueError(f"backend {requested!r} is not one of auto, {', '.join(BACKENDS)}. Use --backend auto.")
