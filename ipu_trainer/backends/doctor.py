"""The report of `ipu-trainer doctor`: hardware and packages of this machine, the backend of `auto`, what the others lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import List, Tuple

import torch

from ipu_trainer import openmp
from ipu_trainer.backends import sdk
from ipu_trainer.backends.select import choose_backend

# The release of Poplar SDK 3.3 and 3.4: poptorch asserts it at import.
_POD_TORCH = "2.0.1"
_PACKAGES = ("transformers", "accelerate", "datasets", "optimum-graphcore", "poptorch", "optuna", "kornia_rs")
_VARIABLES = (
    "POPLAR_EXECUTABLE_CACHE_DIR",
    "POPTORCH_CACHE_DIR",
    "POPTORCH_WAIT_FOR_IPU",
    "IPUOF_VIPU_API_PARTITION_ID",
    "NUM_AVAILABLE_IPU",
    "OMPI_COMM_WORLD_SIZE",
    "PUBLIC_DATASETS_DIR",
    "DATASETS_DIR",
    "CHECKPOINT_DIR",
)


def report() -> str:
    """The table that `ipu-trainer doctor` prints. Changes nothing."""
    found = sdk.probe()
    choice = choose_backend("auto")
    rows: List[Tuple[str, str]] = [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        *((name, _version(name)) for name in _PACKAGES),
        ("CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
        ("OpenMP", openmp.describe()),
        ("GPU", _gpus()),
        ("IPU", found.obstacle or f"hardware version {found.hardware_version}"),
        ("poprun", _poprun()),
        *((name, os.environ[name]) for name in _VARIABLES if name in os.environ),
        ("", ""),
        ("backend sdk", "usable" if found.is_usable else f"not usable: {found.obstacle}"),
        ("backend simulated", "usable (never chosen by auto)"),
        ("backend host", "usable"),
        ("auto takes", f"{choice.name} ({choice.reason})"),
    ]
    if not found.is_usable:
        rows.append(("missing", f"for IPUs: {found.obstacle}"))
        if not torch.__version__.startswith(_POD_TORCH):
            here = f"for IPUs: torch {_POD_TORCH} (SDK 3.3 and 3.4); here is {torch.__version__}"
            rows.append(("missing", here))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _poprun() -> str:
    if importlib.util.find_spec("popdist") is None:
        return "popdist is not installed (it comes with the Poplar SDK)"
    return f"popdist {_version('popdist')}"
