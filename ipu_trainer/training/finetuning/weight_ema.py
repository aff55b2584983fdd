"""An exponential moving average of the weights: what is evaluated and saved at the end, while training goes on with its own.

torch.optim.swa_utils.AveragedModel copies the whole module; this keeps the trainable tensors only, warms up, swaps in
place, and travels in the Trainer's checkpoints, so that a resumed run has the same average bit for bit.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Dict, Iterator, Optional, Union

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ipu_trainer.atomic import atomic_path

AVERAGE_FILE = "weight_average.safetensors"


class WeightAverage:
    """average <- average + (1 - d) (weights - average), with d = min(decay, (1 + updates) / (10 + updates))."""

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay {decay} must be above 0 and below 1, such as 0.999; 0 switches it off.")
        self.decay = decay
        self.updates = 0
        self._average: Dict[str, torch.Tensor] = {}

    def start(self, model: nn.Module, checkpoint: Optional[Union[str, os.PathLike[str]]] = None) -> None:
        """Begin with the model's weights, or with the average that a checkpoint holds."""
        self.updates = 0
        self._average = {name: value.detach().clone() for name, value in _trainable(model).items()}
        if checkpoint is not None:
            file = Path(checkpoint) / AVERAGE_FILE
            if not file.is_file():
                raise ValueError(
                    f"{checkpoint} was saved without a weight average, but ema_decay is {self.decay}. "
                    "Resume with ema_decay 0, or from a checkpoint of a run with it."
                )
            self._read(file)

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, value in _trainable(model).items():
                self._average[name].lerp_(value.detach().to(self._average[name].device), 1.0 - decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the block."""
        own = {name: value.detach().clone() for name, value in _trainable(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _assign(model, own)

    def copy_to(self, model: nn.Module) -> None:
        _assign(model, self._average)

    def save(self, folder: Union[str, os.PathLike[str]]) -> None:
        tensors = {name: value.cpu().contiguous() for name, value in self._average.items()}
        with atomic_path(Path(folder) / AVERAGE_FILE) as temporary:
            save_file(tensors, str(temporary), metadata={"updates": str(self.updates)})

    def load(self, folder: Union[str, os.PathLike[str]], model: nn.Module) -> None:
        """Give the model the average that a checkpoint holds."""
        self._read(Path(folder) / AVERAGE_FILE)
        self.copy_to(model)

    def _read(self, file: Path) -> None:
        from safetensors import safe_open

        for name, value in load_file(str(file)).items():
            self._average[name].copy_(value)
        with safe_open(str(file), framework="pt") as opened:
            self.updates = int(opened.metadata()["updates"])


def _trainable(model: nn.Module) -> Dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _assign(model: nn.Module, values: Dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(values[name])
