"""Where the operations are registered: under a name that changes whenever their code does.

torch keeps what it compiled on disk and finds it by the names of operations. What their backward passes consist of is in there
too, so under an old name a newer version would compute old gradients, or ask for an operation that is no more.
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
