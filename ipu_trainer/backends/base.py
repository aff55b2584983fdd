"""What a trainer may ask of a place to compute, and of a model that was brought there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Protocol


class Executor(Protocol):
    """A model on a device: the part of poptorch.PoplarExecutor that training needs, with poptorch's names.

    One call is one host step: the tensors' dimension 0 runs over device iterations, accumulation and replicas.
    """

    rng_state: List[int]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def compile(self, *args: Any, **kwargs: Any) -> None: ...

    def isCompiled(self) -> bool: ...

    def isAttachedToDevice(self) -> bool: ...

    def attachToDevice(self) -> None: ...

    def detachFromDevice(self) -> None: ...

    def setOptimizer(self, optimizer: Any) -> None: ...

    def copyWeightsToHost(self) -> None: ...

    def copyWeightsToDevice(self) -> None: ...

    def destroy(self) -> None: ...


@dataclass(frozen=True)
class Backend:
    """A place to compute that was chosen, and why.

    poptorch and popart are the namespaces that executors come from: the SDK's modules or the simulator. They are None
    on the host, where the trainer's own loop computes.
    """

    name: str
    reason: str
    poptorch: Any = None
    popart: Any = None
    device: str = ""

    @property
    def has_executors(self) -> bool:
        """Whether a whole host step is one call of an executor."""
        return self.poptorch is not None

    def __deepcopy__(self, _: Any) -> Backend:
        return self

    def describe(self) -> Dict[str, str]:
        """Name, reason and device, as results record them."""
        return {"name": self.name, "reason": self.reason, "device": self.device}
