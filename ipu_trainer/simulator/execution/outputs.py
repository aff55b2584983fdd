"""The micro-batches' outputs that a host step returns, and how they are concatenated.

Final, All, Sum and EveryN select along device iterations and accumulation, for each replica: replicas are never reduced.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import torch

from ipu_trainer.simulator.enums import OutputMode
from ipu_trainer.simulator.errors import createPoptorchError

_NARROW = {torch.int64: torch.int32, torch.float64: torch.float32}


def leave_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy for the program: on the host, without a gradient, in a type that the device has."""
    dtype = _NARROW.get(tensor.dtype, tensor.dtype)
    return torch.empty(tensor.shape, dtype=dtype, device="cpu").copy_(tensor.detach())


class OutputCollector:
    """Collects the outputs of one host step.

    Micro-batches come in the order device iteration, accumulation, replica.
    """

    def __init__(self, mode: OutputMode, period: int, device_iterations: int, accumulation: int, replicas: int) -> None:
        self._mode = mode
        self._period = period
        self._last = (device_iterations - 1, accumulation - 1)
        self._replicas = replicas
        self._selected: List[List[torch.Tensor]] = []
        self._sums: Dict[int, List[torch.Tensor]] = {}

    def add(self, where: Tuple[int, int, int], outputs: Sequence[torch.Tensor]) -> None:
        """Collect the outputs of micro-batch `where` = (device iteration, accumulation, replica) if the mode returns them."""
        iteration, accumulation, replica = where
        if self._mode == OutputMode.Sum:
            if replica not in self._sums:
                self._sums[replica] = [leave_device(tensor) for tensor in outputs]
            else:
                for total, tensor in zip(self._sums[replica], outputs):
                    total.add_(leave_device(tensor))
        elif (
            self._mode == OutputMode.All
            or (self._mode == OutputMode.Final and (iteration, accumulation) == self._last)
            or (self._mode == OutputMode.EveryN and (iteration + 1) % self._period == 0)
        ):
            self._selected.append([leave_device(tensor) for tensor in outputs])

    def result(self) -> List[torch.Tensor]:
        """One tensor per output: micro-batches one after the other along dimension 0.

        A scalar stays one if there is a single value of it, else it becomes a vector.
        """
        parts = [self._sums[r] for r in range(self._replicas)] if self._mode == OutputMode.Sum else self._selected
        joined = []
        for values in zip(*parts):
            if len(values) == 1:
                joined.append(values[0])
            else:
                joined.append(torch.stack(values) if values[0].dim() == 0 else torch.cat(values))
        return joined


def forbid_backward(output: Any) -> None:
    """Let `.backward()` of a returned tensor raise an error that explains what to do."""

    def error_on_backward(*args: Any, **kwargs: Any) -> None:
        raise createPoptorchError(
            "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a trainingModel, "
            "the backwards pass is performed automatically when invoking the model. If you're using an "
            "inferenceModel, you should use a trainingModel instead."
        )

    output.backward = error_on_backward
