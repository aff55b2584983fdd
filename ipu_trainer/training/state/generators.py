"""Saves and restores the states of all random generators; runs a model without side effects on them or on its buffers."""

from __future__ import annotations

import contextlib
import random
from typing import Any, Iterator, Tuple

import numpy as np
import torch
from torch import nn


def generator_states(with_cuda: bool = True) -> Tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if with_cuda and torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002, data sets draw from it


def restore_generators(states: Tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def unchanged_generators() -> Iterator[None]:
    """After the block all random generators are what they were."""
    states = generator_states()
    try:
        yield
    finally:
        restore_generators(states)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """After the block the model's modes and buffers and all random generators are what they were."""
    modes = {part: part.training for part in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with unchanged_generators():
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
