"""Losses that are no numbers are logged as such, where Trainer's filter would log 0.0.

With logging_nan_inf_filter (its default) the stock loop puts the mean of the losses before it in the place of a loss that is NaN or
infinite. Where there are none, since the first of a logging window or all of them are so, that mean is 0.0, the best loss there is.
"""

from __future__ import annotations

from typing import Dict, Optional

import torch


class FiniteLosses:
    """Whether a logging window, and the whole training, had a loss that is a number. Nothing waits for a GPU before a log."""

    def __init__(self) -> None:
        self._in_window: Optional[torch.Tensor] = None
        self._in_training: Optional[torch.Tensor] = None

    def add(self, loss: torch.Tensor) -> None:
        finite = loss.detach().isfinite().all()
        self._in_window = finite if self._in_window is None else self._in_window | finite

    def correct(self, logs: Dict[str, float]) -> None:
        """Put NaN where `loss` or `train_loss` was computed of no number."""
        if "loss" in logs and self._in_window is not None:
            if not bool(self._in_window):
                logs["loss"] = float("nan")
            seen = self._in_window
            self._in_training = seen if self._in_training is None else self._in_training | seen
            self._in_window = None
        if "train_loss" in logs:
            seen_last = [flag for flag in (self._in_window, self._in_training) if flag is not None]
            if seen_last and not any(bool(flag) for flag in seen_last):
                logs["train_loss"] = float("nan")
            self._in_window = self._in_training = None
