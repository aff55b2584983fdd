"""The namespace in which the operators are registered, whose name changes whenever their code does.

torch caches compiled graphs on disk under the names of their operators, backward passes included. Under an old name a newer
version would compute old gradients, or ask for an operator that no longer exists.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch


def namespace_of(folder: Path) -> str:
    """ "ipu_trainer_" and a digest of the folder's Python files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    return f"ipu_trainer_{digest.hexdigest()[:12]}"


NAMESPACE = namespace_of(Path(__file__).parent)
operations: Any = getattr(torch.ops, NAMESPACE)


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, in which kernels compute whatever they read and write; float64 stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
