"""The samples of a batch: rows of its tensors along dimension 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Dict, Optional, Tuple

import torch
from transformers.trainer_pt_utils import find_batch_size

from ipu_trainer.errors import UserError


def shapes_of_rows(batch: Any, rows: int) -> Optional[Tuple[Any, ...]]:
    """Names, types and shapes of one sample in a batch of so many; None if it is not made of tensors of that many rows."""
    if not isinstance(batch, Mapping):
        return None
    if not all(torch.is_tensor(value) and value.dim() and len(value) == rows for value in batch.values()):
        return None
    return tuple((name, value.dtype, value.shape[1:]) for name, value in batch.items())


def rows_of(inputs: Any, begin: int, end: int) -> Dict[str, Any]:
    """Samples begin to end of a batch. Raises UserError if something in it is not one row a sample."""
    rows = find_batch_size(inputs)
    cut: Dict[str, Any] = {}
    for name, value in inputs.items():
        has_rows = isinstance(value, (list, tuple)) or (torch.is_tensor(value) and value.dim())
        if has_rows and len(value) == rows:
            cut[name] = value[begin:end]
        elif value is None or isinstance(value, (bool, int, float, str)):
            cut[name] = value
        else:
            raise UserError(f"{name} of a batch of {rows} samples has no row for each of them.")
    return cut
