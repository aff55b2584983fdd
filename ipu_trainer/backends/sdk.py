"""Real IPUs through Graphcore's poptorch. The only module of this package that imports it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Any, Optional

from ipu_trainer.backends.base import Backend

# poptorch.ipuHardwareVersion(): Mk2 and Bow. Source: optimum-graphcore, ipu_configuration.py, which accepts these.
SUPPORTED_HARDWARE_VERSIONS = (2, 21)


@dataclass(frozen=True)
class SdkProbe:
    """What was found of the SDK, and in words what stands in the way of using it (empty if nothing does)."""

    poptorch: Any
    version: str
    hardware_version: Optional[int]
    obstacle: str

    @property
    def is_usable(self) -> bool:
        return not self.obstacle


def probe() -> SdkProbe:
    """Look for poptorch and an IPU that answers. Never raises: what fails is said in `obstacle`."""
    if _simulator_is_poptorch():
        return SdkProbe(None, "", None, "poptorch is the simulator in this program")
    if importlib.util.find_spec("poptorch") is None:
        return SdkProbe(
            None, "", None, "poptorch is not installed (pip install the wheel that comes with the Poplar SDK)"
        )
    try:
        import poptorch
    except (ImportError, AssertionError, OSError) as error:  # another torch, or the SDK's libraries are not enabled
        return SdkProbe(None, "", None, f"poptorch cannot be imported: {error}. Source the SDK's enable scripts")
    version = str(getattr(poptorch, "__version__", "unknown"))
    if not poptorch.ipuHardwareIsAvailable():
        return SdkProbe(poptorch, version, None, "no IPU answers (check gc-info -l and IPUOF_VIPU_API_PARTITION_ID)")
    hardware = int(poptorch.ipuHardwareVersion())
    if hardware not in SUPPORTED_HARDWARE_VERSIONS:
        return SdkProbe(poptorch, version, hardware, f"IPU hardware version {hardware} is not a Mk2 or Bow IPU")
    return SdkProbe(poptorch, version, hardware, "")


def sdk_backend(reason: str, found: SdkProbe) -> Backend:
    """The backend of a probe that found IPUs, or at least poptorch (to compile offline)."""
    import popart

    device = "offline target" if found.hardware_version is None else f"IPU hardware version {found.hardware_version}"
    return Backend("sdk", reason, found.poptorch, popart, f"{device}, poptorch {found.version}")


def options_class(poptorch: Any) -> Any:
    """poptorch.Options; under poprun popdist's, which knows the instances and the replicas of this one."""
    try:
        import popdist
    except ImportError:
        return poptorch.Options
    if not popdist.isPopdistEnvSet():
        return poptorch.Options
    import popdist.poptorch

    return popdist.poptorch.Options


def _simulator_is_poptorch() -> bool:
    module = sys.modules.get("poptorch")
    return module is not None and module.__name__.startswith("ipu_trainer.")


def program_is_simulated() -> bool:
    """Whether the program asked for the simulator as poptorch, rather than ipu_trainer on behalf of a library."""
    if not _simulator_is_poptorch():
        return False
    from ipu_trainer.simulator.sdk import install

    return install.program_is_simulated()
