"""Automatic loss scaling: the device halves the scale when float16 gradients come near overflow, else doubles it.

The rule is PopART's: count gradient elements above a bin edge (an eighth of float16's largest number); once every few weight
updates halve the scale if their share passes a threshold, else double it. PopART counts gradients of all tensors, the
simulator those of the weights. Gradients in float32 do not count.
Source: graphcore/popart, willow/include/popart/sessionoptions.hpp, AutomaticLossScalingSettings, for the defaults.
"""

from __future__ import annotations

import math
from typing import Any, Dict

import torch

_DEFAULTS = {"binEdgeLocation": 0.125, "thresholdUpperCountProportion": 1e-7, "updatePeriod": 8}
_LARGEST_SCALE = 2.0**31


class AutomaticLossScaling:
    """The factor by which the optimizer's loss scaling is multiplied."""

    def __init__(self, popart_options: Dict[str, Any]) -> None:
        settings = {k: popart_options.get(f"automaticLossScalingSettings.{k}", v) for k, v in _DEFAULTS.items()}
        self._edge = settings["binEdgeLocation"] * torch.finfo(torch.float16).max
        self._threshold = settings["thresholdUpperCountProportion"]
        self._period = int(settings["updatePeriod"])
        self.factor = 1.0
        self._above = 0
        self._counted = 0
        self._updates = 0

    def count(self, gradient: torch.Tensor) -> None:
        """Count a scaled gradient of one micro-batch."""
        if gradient.dtype == torch.float16:
            within = (gradient.abs() <= self._edge).sum()  # infinities and NaN are not
            self._above += gradient.numel() - int(within)
            self._counted += gradient.numel()

    def updated(self, loss_scaling: float) -> None:
        """A weight update has been made with this loss scaling times the factor."""
        self._updates += 1
        if not self._counted or self._updates % self._period:
            return
        if self._above / self._counted > self._threshold:
            self.factor /= 2
        elif loss_scaling * self.factor * 2 <= _LARGEST_SCALE and math.isfinite(self.factor):
            self.factor *= 2
        self._above = self._counted = 0
