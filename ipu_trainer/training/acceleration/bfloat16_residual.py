"""The residual stream in bfloat16, which autocast keeps in float32.

Autocast computes matrix products in bfloat16, yet the residual stream starts as float32 embeddings and stays float32. Between
products a GPU is bound by memory bandwidth, so half the bytes take less time. Each residual sum is then rounded to eight bits.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import nn

from ipu_trainer.errors import UserError
from ipu_trainer.training.layers import layer_stacks


@contextlib.contextmanager
def bfloat16_residual_stream(model: nn.Module) -> Iterator[int]:
    """Inside the block, while training under autocast, the first layer of each stack reads bfloat16; yields how many stacks.

    Evaluation is not affected. Raises UserError for a model without repeated layers.
    """
    firsts = [layers[0] for _, layers in layer_stacks(model)]
    if not firsts:
        raise UserError(
            f"bf16_residual: {type(model).__name__} has no repeated layers (a ModuleList of one class). Leave it off."
        )
    handles = [layer.register_forward_pre_hook(_hidden_in_bfloat16, with_kwargs=True) for layer in firsts]
    try:
        yield len(firsts)
    finally:
        for handle in handles:
            handle.remove()


def _hidden_in_bfloat16(layer: nn.Module, given: Tuple[Any, ...], named: Dict[str, Any]) -> Any:
    if not layer.training:
        return None
    if given:
        return (_rounded(given[0]), *given[1:]), named
    return given, {**named, "hidden_states": _rounded(named["hidden_states"])}


def _rounded(hidden: torch.Tensor) -> torch.Tensor:
    on_gpu = hidden.device.type == "cuda"
    autocast = torch.is_autocast_enabled() if on_gpu else torch.is_autocast_cpu_enabled()
    return hidden.to(torch.bfloat16) if autocast and hidden.dtype == torch.float32 else hidden
