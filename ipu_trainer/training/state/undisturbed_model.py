"""A look at a model before it is trained that changes nothing of the training."""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch
from torch import nn

from ipu_trainer.training.state.generators import generator_states, restore_generators


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """After the block the model's modes and buffers and all random generators are what they were."""
    states, modes = generator_states(), {part: part.training for part in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        restore_generators(states)
