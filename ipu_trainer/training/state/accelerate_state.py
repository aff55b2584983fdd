"""The device and precision of one trainer, whatever trainers are made after it.

Accelerate keeps them once for a whole program, and each new TrainingArguments resets them: a trainer in bfloat16 then computes
in float32 as soon as another one is made, and a simulated run moves a model on the GPU to the CPU.
"""

from __future__ import annotations

from typing import Any

from ipu_trainer.compat.accelerate_internals import shared_states
from ipu_trainer.compat.stock_trainer import StockTrainer


class OwnAccelerateState:
    """Accelerate's state when this was made; `restore` sets it again, for every object that shares it."""

    def __init__(self) -> None:
        self._saved = [dict(state) for state in shared_states()]

    @property
    def is_set(self) -> bool:
        """Whether Accelerate was in use when this was made."""
        return any(self._saved)

    def restore(self) -> None:
        for state, saved in zip(shared_states(), self._saved):
            state.clear()
            state.update(saved)


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
