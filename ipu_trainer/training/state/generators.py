"""The random numbers that come next, of all generators a training draws from: kept and put back."""

from __future__ import annotations

import random
from typing import Any, Tuple

import numpy as np
import torch


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
