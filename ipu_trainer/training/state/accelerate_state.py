"""The device and precision of one trainer, whatever trainers were made after it.

Accelerate keeps them once for a whole program, and each new TrainingArguments begins anew: a trainer in bfloat16 then computes
in float32 as soon as another one is made, and a model on the GPU is moved to the CPU by a simulated run beside it.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from accelerate.state import AcceleratorState, PartialState

from ipu_trainer.compat.stock_trainer import StockTrainer


class OwnAccelerateState:
    """What Accelerate held when this was made; `restore` brings it back, for every object that shares it."""

    def __init__(self) -> None:
        self._kept: List[Tuple[Any, Dict[str, Any]]] = [
            (kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState)
        ]

    @property
    def is_set(self) -> bool:
        """Whether Accelerate was in use when this was made."""
        return any(kept for _, kept in self._kept)

    def restore(self) -> None:
        for kind, kept in self._kept:
            kind._shared_state.clear()
            kind._shared_state.update(kept)


class KeepsAccelerateState(StockTrainer):
    """Trainer that computes with its own device and precision, whatever trainers were made after it."""

    _accelerate_state: OwnAccelerateState

    def keep_accelerate_state(self) -> None:
        self._accelerate_state = OwnAccelerateState()

    def restore_accelerate_state(self) -> None:
        self._accelerate_state.restore()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.keep_accelerate_state()

    def evaluate(self, *positional: Any, **named: Any) -> Any:
        self.restore_accelerate_state()
        return super().evaluate(*positional, **named)

    def predict(self, *positional: Any, **named: Any) -> Any:
        self.restore_accelerate_state()
        return super().predict(*positional, **named)
