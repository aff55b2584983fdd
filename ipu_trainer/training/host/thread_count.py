"""How many CPU threads compute a training step: one where the model is too small for two to pay.

A matrix product is shared among threads in a few microseconds, so a product of a few million operations gains nothing by it
alone, and loses half of its speed where other processes need the cores: a thread waits for another one that is not running.
The choice is a function of model and shapes, never of a clock, so that a resumed run computes as the uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any, Dict, Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Operations of a step's largest matrix product below which a second thread does not pay. ViTs of 0.02 to 22 M parameters on two
# cores (torch 2.13): two threads run at 0.80 to 1.07 times the speed of one for products up to 8.5 M operations, at 1.13 for 17 M
# and at 1.4 to 1.7 from 68 M on. Beside two busy processes one thread is 1.8 to 2.7 times as fast as two for those up to 17 M.
SMALL_PRODUCT = 10_000_000
_DECIDED_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MULTIPLIERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_default_num_threads = torch.get_num_threads()


class ThreadCount:
    """The number of threads of each step of a model, decided once for each shape of what the model is called with."""

    def __init__(self) -> None:
        self._given = 0  # inside a training
        self._products: WeakKeyDictionary[nn.Module, Dict[Any, int]] = WeakKeyDictionary()

    @contextlib.contextmanager
    def training(self, args: Any) -> Iterator[None]:
        """Around a training, inside which of_step() chooses: optimizer and loader then have the threads of the last step.

        args: TrainingArguments. Nothing is chosen on a GPU, or for compiled layers, which are made for a number of threads.
        """
        compiled = args.torch_compile or getattr(args, "compile", "off") in ("layers", "model")
        chooses = args.device.type == "cpu" and not compiled and not is_decided_by_user()
        self._given = torch.get_num_threads() if chooses else 0
        try:
            yield
        finally:
            self._set(self._given)
            self._given = 0

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation inside a training: its batches are others, and it has all threads."""
        chosen = torch.get_num_threads()
        self._set(self._given)
        yield
        self._set(chosen if self._given else 0)

    @contextlib.contextmanager
    def of_step(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the first call of a model sets the number of threads: one where model and batch are small."""
        if self._given < 2 or 2 * _largest_weight(model) > SMALL_PRODUCT:
            self._set(self._given)
            yield
            return

        def choose(_: nn.Module, positional: Any, named: Any) -> None:
            hook.remove()
            self._set(1 if self._product(model, positional, named) < SMALL_PRODUCT else self._given)

        hook = model.register_forward_pre_hook(choose, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @staticmethod
    def _set(num_threads: int) -> None:
        """Nothing for 0, and nothing for what is set: even the same number changes how MKL shares its products out."""
        if num_threads and torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)

    def _product(self, model: nn.Module, positional: Any, named: Dict[str, Any]) -> int:
        known = self._products.setdefault(model, {})
        shapes = tuple(getattr(value, "shape", None) for value in [*positional, *named.values()])
        if (shapes, *named) not in known:
            product = known[(shapes, *named)] = largest_product(model, [*positional, *named.values()])
            if len(known) == 1 and product < SMALL_PRODUCT:
                logger.info("one CPU thread: this model is too small for more (OMP_NUM_THREADS decides otherwise)")
        return known[(shapes, *named)]


def is_decided_by_user() -> bool:
    """Whether the environment or torch.set_num_threads says how many threads to use."""
    in_environment = any(os.environ.get(name) for name in _DECIDED_BY_USER)
    return in_environment or torch.get_num_threads() != _default_num_threads


def largest_product(model: nn.Module, tensors: Iterable[Any]) -> int:
    """Operations (two for a multiply-add) of the largest matrix product of a forward pass, estimated from above.

    The largest weight times the rows that the first layer makes of the largest input: tokens, patches, or vectors. Later
    convolutions have fewer rows, so a network of convolutions may look larger than it is, and keeps its threads. The model is
    not called: it may count its calls.
    """
    layers = [module for module in model.modules() if isinstance(module, _MULTIPLIERS)]
    if not layers:
        return SMALL_PRODUCT
    rows = max((_rows(layers[0], value) for value in tensors if isinstance(value, torch.Tensor)), default=0)
    weights = [layer.weight.numel() for layer in layers if isinstance(layer.weight, torch.Tensor)]
    return 2 * rows * max(weights) if rows else SMALL_PRODUCT


def _rows(first: nn.Module, value: torch.Tensor) -> int:
    """Rows of the first layer's product; as many as there are elements where neither tokens nor that layer tell."""
    if isinstance(first, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and value.dim() == 2 + len(first.stride):
        return value.shape[0] * math.prod(size // step for size, step in zip(value.shape[2:], first.stride))
    if isinstance(first, nn.Linear) and value.is_floating_point() and value.shape[-1:] == (first.in_features,):
        return value.numel() // first.in_features
    return value.numel()


def _largest_weight(model: nn.Module) -> int:
    return max((parameter.numel() for parameter in model.parameters()), default=0)
