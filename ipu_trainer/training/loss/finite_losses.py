"""NaN and infinite losses are logged as such, or counted, and never as 0.0.

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


class LogsFiniteLosses(StockTrainer):
    """Trainer whose logging_nan_inf_filter logs no 0.0 for a window without any finite loss. Nothing waits for a GPU but a log."""

    _losses_in_window = 0
    _not_finite_in_window: Optional[torch.Tensor] = None  # their number; None before the first loss
    _last_logged_loss = _WORST
    _lost_a_window = False

    def note_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Count the loss of a training step; returns it."""
        if self.args.logging_nan_inf_filter:
            broken, before = (~loss.detach().isfinite()).any().long(), self._not_finite_in_window
            self._losses_in_window += 1
            self._not_finite_in_window = broken if before is None else before + broken
        return loss

    def log(self, logs: Dict[str, float], *positional: Any, **named: Any) -> None:
        """Say in `logs` how many losses were no numbers; of a window without any other, `loss` is the last one that was."""
        counted = self._not_finite_in_window if {"loss", "train_loss"} & logs.keys() else None
        not_finite = None if counted is None else int(counted)
        is_lost = not_finite == self._losses_in_window
        if "loss" in logs and not_finite is not None:
            if not_finite:
                logs["non_finite_losses"] = not_finite
            if is_lost:
                self._lost_a_window = True
                logger.warning(
                    "all %d losses since the last log are NaN or infinite (logging_nan_inf_filter)", not_finite
                )
                logs["loss"] = self._last_logged_loss
            self._last_logged_loss = logs["loss"]
            self._losses_in_window, self._not_finite_in_window, is_lost = 0, None, False
        if "train_loss" in logs:
            if self._lost_a_window or is_lost:
                logs["train_loss"] = float("nan")
            self._losses_in_window, self._not_finite_in_window = 0, None
            self._last_logged_loss, self._lost_a_window = _WORST, False
        super().log(logs, *positional, **named)
