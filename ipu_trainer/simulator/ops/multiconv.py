"""poptorch.MultiConv: convolutions that the device may run at the same time. Values do not change."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator import enums
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.forward.context import context
from ipu_trainer.simulator.forward.observer import CompilationObserver


class MultiConv:
    """Convolutions inside `with poptorch.MultiConv():` are planned together. The setters check hints."""

    def __init__(self) -> None:
        self._num_convolutions_before = 0

    def availableMemoryProportions(self, value: Union[float, Sequence[float], None]) -> MultiConv:
        """Share of memory per convolution, or one for all."""
        values: List[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if value is not None and (not values or any(not isinstance(item, float) for item in values)):
            raise AssertionError("Invalid available memory proportion!")
        return self

    def partialsTypes(self, value: Union[torch.dtype, Sequence[torch.dtype]]) -> MultiConv:
        """The type to sum in, per convolution or one for all: torch.float or torch.half."""
        types = list(value) if isinstance(value, (list, tuple)) else [value]
        if any(kind not in (torch.float32, torch.float16) for kind in types):
            raise UserError("Invalid partials types. Expecting torch.float or torch.half")
        return self

    def enableConvDithering(self, value: Union[bool, Sequence[bool], None]) -> MultiConv:
        """Spread over tiles, per convolution or one for all."""
        flags = list(value) if isinstance(value, (list, tuple)) else [value]
        if value is not None and any(not isinstance(flag, bool) for flag in flags):
            raise UserError("value must be bool or list of bools")
        return self

    def planType(self, value: Optional[enums.MultiConvPlanType]) -> MultiConv:
        """Side by side or in turn."""
        if value is not None and not isinstance(value, enums.MultiConvPlanType):
            raise AssertionError("Invalid plan type!")
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Tiles for each convolution."""
        assert isinstance(value, int)
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """How much slower than the best plan is acceptable."""
        assert isinstance(value, float)
        return self

    def __enter__(self) -> None:
        observer = context.observer
        if isinstance(observer, CompilationObserver):
            if observer.in_multi_conv:
                raise compiler_error("Nested poptorch.MultiConv is not supported.")
            observer.in_multi_conv = True
            self._num_convolutions_before = observer.num_convolutions

    def __exit__(self, error: Any, value: Any, traceback: Any) -> None:
        observer = context.observer
        if isinstance(observer, CompilationObserver):
            observer.in_multi_conv = False
            if error is None and observer.num_convolutions == self._num_convolutions_before:
                raise compiler_error("Unexpected end_multi_conv: no convolution was computed inside the MultiConv.")
