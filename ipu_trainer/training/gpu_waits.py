"""Checks of Transformers that make each training step wait for the GPU, made without waiting.

A model that reads a number from the GPU in its forward pass stops queueing work until the GPU has done all that was queued, and
the GPU then idles until there is more.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, List, Mapping, Optional

import torch
from torch import nn

try:
    from transformers import masking_utils
except ImportError:  # transformers before 4.53
    masking_utils = None  # type: ignore[assignment]

_PADDING = "warn_if_padding_and_no_attention_mask"


@contextlib.contextmanager
def rows_not_packed(inputs: Any) -> Iterator[None]:
    """Around a step: positions that the model numbers itself, alike for all rows, are not searched for packed sequences.

    Transformers looks for several sequences in a row by their positions, and asks the GPU whether there are any. Positions that
    came with `inputs` are searched as ever.
    """
    given = isinstance(inputs, Mapping) and inputs.get("position_ids") is None
    search = getattr(masking_utils, "find_packed_sequence_indices", None)
    if not given or search is None:
        yield
        return

    def find(position_ids: torch.Tensor) -> Any:
        alike = position_ids.shape[0] > 1 and position_ids.stride(0) == 0  # one row, expanded
        if alike and position_ids.device.type != "cpu" and not torch.compiler.is_compiling():
            return None
        return search(position_ids)

    masking_utils.find_packed_sequence_indices = find
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


@contextlib.contextmanager
def padding_told_later(model: nn.Module) -> Iterator[None]:
    """Inside the block a model on a GPU warns of padding without an attention mask as soon as the GPU has told, not at once."""
    checks: List[_LaterCheck] = []
    for module in model.modules():
        if hasattr(module, _PADDING) and _PADDING not in module.__dict__:
            checks.append(_LaterCheck(module, getattr(module, _PADDING)))
            module.__dict__[_PADDING] = checks[-1]
    try:
        yield
        for check in checks:
            check.read(wait=True)
    finally:
        for check in checks:
            del check.module.__dict__[_PADDING]


class _LaterCheck:
    """What the check looks at (first and last token of each row) is copied behind the GPU's work and read when it is there."""

    def __init__(self, module: nn.Module, check: Callable[[torch.Tensor, Any], None]) -> None:
        self.module, self.check = module, check
        self.ends: Optional[torch.Tensor] = None
        self.copied: Any = None

    def __call__(self, input_ids: torch.Tensor, attention_mask: Any) -> None:
        if attention_mask is not None or not input_ids.is_cuda or torch.compiler.is_compiling():
            self.check(input_ids, attention_mask)
            return
        self.read(wait=False)
        if self.ends is None and getattr(self.module.config, "pad_token_id", None) is not None:
            self.ends = torch.stack((input_ids[:, 0], input_ids[:, -1]), dim=1).to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self, wait: bool) -> None:
        if self.ends is None:
            return
        if wait:
            self.copied.synchronize()
        if self.copied.query():
            ends, self.ends = self.ends, None
            self.check(ends, None)
