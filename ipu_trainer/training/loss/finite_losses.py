"""Losses that are no numbers are never logged as 0.0.

With logging_nan_inf_filter the stock loop puts the mean of a logging window's losses in the place of one that is NaN or infinite.
In a window of such losses alone that mean is 0.0, the best loss there is. The filter promises finite numbers, so there the last
loss that was one is logged again, or without any the largest number there is: never a better one than was seen.
"""

from __future__ import annotations

import sys
from typing import Any, Dict, Optional

import torch
from transformers.utils import logging

from ipu_trainer.compat.stock_trainer import StockTrainer

logger = logging.get_logger(__name__)
_WORST = sys.float_info.max


class FiniteLosses:
    """Counts the losses of a logging window that are no numbers. Nothing waits for a GPU before a log."""

    def __init__(self) -> None:
        self._steps = 0
        self._not_finite: Optional[torch.Tensor] = None
        self._last = _WORST
        self._lost_a_window = False

    def add(self, loss: torch.Tensor) -> None:
        broken = (~loss.detach().isfinite()).any().long()
        self._steps += 1
        self._not_finite = broken if self._not_finite is None else self._not_finite + broken

    def correct(self, logs: Dict[str, float]) -> None:
        """Say in `logs` how many losses were no numbers; of a window without any other, `loss` is the last one that was."""
        if "loss" in logs and self._not_finite is not None:
            not_finite = int(self._not_finite)
            if not_finite:
                logs["non_finite_losses"] = not_finite
            if not_finite == self._steps:
                self._lost_a_window = True
                logger.warning(
                    "all %d losses since the last log are NaN or infinite (logging_nan_inf_filter)", not_finite
                )
                logs["loss"] = self._last
            self._last = logs["loss"]
            self._steps, self._not_finite = 0, None
        if "train_loss" in logs:
            if self._lost_a_window or (self._not_finite is not None and int(self._not_finite) == self._steps):
                logs["train_loss"] = float("nan")
            self._steps, self._not_finite = 0, None
            self._last, self._lost_a_window = _WORST, False


class LogsFiniteLosses(StockTrainer):
    """Trainer whose logging_nan_inf_filter logs no 0.0 for a window without any finite loss."""

    _finite_losses: Optional[FiniteLosses] = None

    def note_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Count the loss of a training step; returns it."""
        if self.args.logging_nan_inf_filter:
            self._finite_losses = self._finite_losses or FiniteLosses()
            self._finite_losses.add(loss)
        return loss

    def log(self, logs: Dict[str, float], *positional: Any, **named: Any) -> None:
        if self._finite_losses is not None:
            self._finite_losses.correct(logs)
        super().log(logs, *positional, **named)
