"""Checks of Transformers that make each training step wait for the GPU, made without waiting.

A model that reads a number from the GPU in its forward pass stops queueing work until the GPU has done all that was queued, and
the GPU then idles until there is more.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Mapping

import torch
from transformers import PreTrainedModel

from ipu_trainer.compat.transformers_versions import masking_utils

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
def padding_told_later() -> Iterator[None]:
    """Inside the block models on a GPU warn of padding without an attention mask as soon as the GPU has told, not at once."""
    check = getattr(PreTrainedModel, _PADDING, None)
    if check is None:
        yield
        return
    copies: Dict[PreTrainedModel, _Ends] = {}

    def later(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: Any) -> None:
        if attention_mask is not None or input_ids.device.type == "cpu" or torch.compiler.is_compiling():
            check(model, input_ids, attention_mask)
            return
        if model in copies and copies[model].arrived():
            check(model, copies.pop(model).tokens, None)
        if model not in copies and getattr(model.config, "pad_token_id", None) is not None:
            copies[model] = _Ends(input_ids)

    setattr(PreTrainedModel, _PADDING, later)
    try:
        yield
        for model, ends in copies.items():
            ends.wait()
            check(model, ends.tokens, None)
    finally:
        setattr(PreTrainedModel, _PADDING, check)


class _Ends:
    """The first and last token of each row, which are what the check looks at, on their way to the CPU."""

    def __init__(self, input_ids: torch.Tensor) -> None:
        self.tokens = torch.stack((input_ids[:, 0], input_ids[:, -1]), dim=1).to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.copied.record()

    def wait(self) -> None:
        self.copied.synchronize()

    def arrived(self) -> bool:
        return bool(self.copied.query())  # type: ignore[no-untyped-call]
