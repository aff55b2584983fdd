"""Host-device synchronisation in training steps: checks of Transformers that wait for the GPU, made without waiting.

A model that reads a number from the GPU in its forward pass stops queueing kernels until the GPU has done all that was queued, and
the GPU then idles until there is more.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, Dict, Iterator, Mapping, Tuple

import torch
from transformers import PreTrainedModel

from ipu_trainer.compat.transformers_training import packing_check, padding_warning


def skip_packing_check(inputs: Any) -> ContextManager[None]:
    """Around a step: positions that the model numbers itself, equal in all rows, are not searched for packed sequences.

    Transformers looks for several sequences in a row by their positions, and asks the GPU whether there are any. Positions that
    are among `inputs` are searched as ever.
    """

    def make(search: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        def find(position_ids: torch.Tensor) -> Any:
            one_row_expanded = position_ids.shape[0] > 1 and position_ids.stride(0) == 0
            if one_row_expanded and position_ids.device.type != "cpu" and not torch.compiler.is_compiling():
                return None
            return search(position_ids)

        return find

    has_positions = not isinstance(inputs, Mapping) or inputs.get("position_ids") is not None
    return contextlib.nullcontext() if has_positions else packing_check(make)


@contextlib.contextmanager
def deferred_padding_warning() -> Iterator[None]:
    """Inside the block models on a GPU warn of padding without an attention mask once the tokens have been copied, not at once."""
    stock: Any = None
    copies: Dict[PreTrainedModel, Tuple[torch.Tensor, Any]] = {}

    def make(check: Any) -> Any:
        nonlocal stock
        stock = check

        def later(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: Any) -> None:
            if attention_mask is not None or input_ids.device.type == "cpu" or torch.compiler.is_compiling():
                check(model, input_ids, attention_mask)
                return
            if model in copies and copies[model][1].query():
                check(model, copies.pop(model)[0], None)
            if model not in copies and getattr(model.config, "pad_token_id", None) is not None:
                copies[model] = _copy_ends(input_ids)

        return later

    with padding_warning(make):
        yield
        for model, (tokens, copied) in copies.items():
            copied.synchronize()
            stock(model, tokens, None)


def _copy_ends(input_ids: torch.Tensor) -> Tuple[torch.Tensor, Any]:
    """The first and last token of each row, which the warning looks at, and an event after their copy to the CPU."""
    tokens = torch.stack((input_ids[:, 0], input_ids[:, -1]), dim=1).to("cpu", non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return tokens, copied
