"""An exponential moving average of the weights: what is evaluated and saved at the end, while training goes on with its own.

torch.optim.swa_utils.AveragedModel copies the whole module; this keeps the trainable tensors only, warms up, swaps in
place, and travels in the Trainer's checkpoints, so that a resumed run has the same average bit for bit.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Union

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ipu_trainer.atomic import atomic_path
from ipu_trainer.compat.stock_trainer import StockLoop, StockTrainer
from ipu_trainer.errors import UserError

AVERAGE_FILE = "weight_average.safetensors"


class WeightAverage:
    """average <- average + (1 - d) (weights - average), with d = min(decay, (1 + updates) / (10 + updates))."""

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise UserError(f"ema_decay {decay} must be above 0 and below 1, such as 0.999; 0 switches it off.")
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
                raise UserError(
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


class AveragesWeights(StockTrainer):
    """Trainer that keeps a WeightAverage where ema_decay asks for one. It is evaluated, saved in checkpoints, and the result."""

    weight_average: Optional[WeightAverage] = None

    def set_up_average(self) -> None:
        """After Trainer's own __init__."""
        if getattr(self.args, "ema_decay", 0.0):
            self.weight_average = WeightAverage(self.args.ema_decay)
            self.add_callback(_AverageAfterUpdate(self.weight_average))

    def training_loop(self, loop: StockLoop) -> Any:
        average = self.weight_average
        if average is None:
            return super().training_loop(loop)
        average.start(self.model, loop.resume_from_checkpoint)
        output = super().training_loop(loop)
        if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None):
            average.copy_to(self.model)
        return output

    def evaluation_loop(self, *positional: Any, **named: Any) -> Any:
        if self.weight_average is None or not self.is_in_train:
            return super().evaluation_loop(*positional, **named)
        with self.weight_average.applied(self.model):
            return super().evaluation_loop(*positional, **named)

    def write_model(self, folder: str, state_dict: Optional[Dict[str, Any]] = None) -> None:
        super().write_model(folder, state_dict)
        if self.weight_average is not None and self.is_in_train:
            self.weight_average.save(folder)

    def load_best_model(self) -> None:
        super().load_best_model()
        if self.weight_average is not None:
            self.weight_average.load(self.state.best_model_checkpoint, self.model)


class _AverageAfterUpdate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.average.update(model)
