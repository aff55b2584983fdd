"""How threads of torch wait for each other on a CPU that is shared: asleep, after a short while.

torch's OpenMP (libgomp) lets a thread that has finished its part of an operator spin for the others. Where other processes need
the cores too, threads spin through the time slices in which the thread that they wait for should run. libgomp reads its policy
once, as torch is imported, so this runs when ipu_trainer is imported; processes that are started later inherit it.
"""

from __future__ import annotations

import os
import sys
from typing import Optional

SPIN_COUNT = "10000"
# Whoever sets one of these has a policy.
_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")

_came_too_late = False


def wait_asleep() -> None:
    """Set GOMP_SPINCOUNT unless there is a policy. Where torch is imported already it holds for processes started later alone."""
    global _came_too_late
    if not any(os.environ.get(name) for name in _POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        _came_too_late = "torch" in sys.modules


def describe() -> str:
    """The policy of this process, in words."""
    if _came_too_late:
        return (
            "threads spin (torch was imported before ipu_trainer; import ipu_trainer first, or set "
            f"GOMP_SPINCOUNT={SPIN_COUNT} where Python is started)"
        )
    return ", ".join(f"{name}={os.environ[name]}" for name in _POLICIES if os.environ.get(name))


def why_slow(num_threads: int) -> Optional[str]:
    """A warning for a run whose threads spin on CPUs that others need; None where it does not apply."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    if not _came_too_late or num_threads < 2 or load < cores:
        return None
    return f"the CPUs are busy (load {load:.1f} on {cores}), which makes small models many times slower: {describe()}"
