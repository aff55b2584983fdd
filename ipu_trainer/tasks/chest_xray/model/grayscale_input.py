"""The patch projection of one grayscale channel: normalisation and three equal channels, merged exactly into the weights.

conv(((g, g, g) - mean) / std, W) + b  =  conv(g, sum_c W_c / std_c) + b - sum W_c * mean_c / std_c

Every step computes the merged weights from the model's weights, so gradients and checkpoints are those of the model.
"""

from __future__ import annotations

import contextlib
from typing import Iterator, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation


class GrayscaleProjection:
    """Lets a model take gray values in [0, 1] instead of normalised RGB."""

    def __init__(self, projection: nn.Conv2d, normalisation: Normalisation) -> None:
        self.projection = projection
        self.normalisation = normalisation
        self._constants: Optional[Tuple[torch.Tensor, torch.Tensor]] = None

    @classmethod
    def of(cls, model: nn.Module, normalisation: Normalisation) -> Optional[GrayscaleProjection]:
        """None if the model's first convolution is no plain patch projection of three channels."""
        first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
        if first is None or type(first) is not nn.Conv2d or first.in_channels != 3 or first.groups != 1:
            return None
        # Padding would add zeros before normalisation instead of after it.
        if first.padding not in ((0, 0), "valid") or tuple(first.stride) != tuple(first.kernel_size):
            return None
        return cls(first, normalisation)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model's pixel_values are gray_channels(gray)."""
        self.projection.forward = self._forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.projection.__dict__["forward"]

    @staticmethod
    def gray_channels(gray: torch.Tensor) -> torch.Tensor:
        """(micro_batch, height, width) expanded to (micro_batch, 3, height, width), without a copy."""
        return gray[:, None].expand(-1, 3, -1, -1)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight, bias = self.projection.weight, self.projection.bias
        mean, std = self._mean_and_std(weight)
        scaled = weight / std
        shift = -(scaled * mean).sum(dim=(1, 2, 3))
        weight = scaled.sum(dim=1)  # (channels, height, width) of a patch
        height, width = weight.shape[1:]
        # A GEMM over patches: a convolution of one channel would first convert the memory format.
        gray = pixels[:, 0].unfold(1, height, height).unfold(2, width, width)
        number, rows, columns = gray.shape[:3]
        patches = gray.reshape(number, rows * columns, height * width)
        tokens = functional.linear(patches, weight.flatten(1), shift if bias is None else bias + shift)
        return tokens.transpose(1, 2).view(number, -1, rows, columns)

    def _mean_and_std(self, like: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """(1, 3, 1, 1) each, copied once: a copy in every step would synchronise with the GPU."""
        found = self._constants
        if found is None or found[0].device != like.device or found[0].dtype != like.dtype:
            given = (self.normalisation.mean, self.normalisation.std)
            mean, std = (like.new_tensor(values).view(1, 3, 1, 1) for values in given)
            self._constants = found = (mean, std)
        return found
