"""torch's tensors: the identity of their memory, and whether it was written."""

from __future__ import annotations

import torch

from ipu_trainer.compat.internals import Internal

_TESTS = "tests/compat/test_torch_internals.py"
STORAGE_IDENTITY = Internal(
    "torch.UntypedStorage._cdata",
    "identifies a storage on the meta device, where every address is 0",
    "2.0",
    "2.13",
    f"{_TESTS}::test_views_share_a_storage_on_the_meta_device",
)
VERSION = Internal(
    "torch.Tensor._version",
    "counts in-place writes, through any view",
    "2.0",
    "2.13",
    f"{_TESTS}::test_the_version_counts_writes_through_views",
)


def storage_id(tensor: torch.Tensor) -> int:
    """The same number for tensors that share memory, also on the meta device. Unique while the storage lives."""
    return int(tensor.untyped_storage()._cdata)


def num_writes(tensor: torch.Tensor) -> int:
    """A number that grows with every in-place write into the tensor's memory."""
    return int(tensor._version)
