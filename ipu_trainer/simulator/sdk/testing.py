"""poptorch.testing: comparisons of nested values."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Whether tensors, or tuples or lists of them in the same nesting, are close.

    Raises AssertionError for anything else.
    """
    if isinstance(ref, torch.Tensor):
        return torch.allclose(other, ref)
    assert isinstance(ref, (tuple, list)), f"{type(ref)} not supported"
    same_kind = isinstance(other, (tuple if isinstance(ref, tuple) else list))
    return same_kind and len(ref) == len(other) and all(allclose(r, o) for r, o in zip(ref, other))
