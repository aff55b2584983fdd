"""What belongs to one trainer of several in a program, and a trainer as bytes.

Accelerate keeps device and precision once for a whole program, and each new TrainingArguments resets them: a trainer in bfloat16
then computes in float32 as soon as another one is made, and a simulated run moves a model on the GPU to the CPU.

Bytes are for pickle, cloudpickle, copy.deepcopy, spawned processes and Ray: before, after and during training. What belongs to the
process stays behind and is rebuilt where the trainer is read: Accelerate's accelerator, whose list of data loaders holds weak
references once a training has run (stock Trainer 5 does not pickle from then on), caches by id(), and the executors of a device.
Weights, the optimizer's state (the device's too) and the device's generators travel.
"""

from __future__ import annotations

import copy
import types
from typing import Any, Dict

from ipu_trainer.compat.accelerate_internals import shared_states
from ipu_trainer.compat.stock_trainer import StockTrainer

# Attributes that only this process can have; the accelerator is among them where Trainer makes one (not in 4.29).
_OF_THE_PROCESS = ("accelerator", "gather_function", "_loss_reductions")


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


class PicklesTrainer(StockTrainer):
    """Trainer that computes with its own device and precision, and that can be copied and sent to another process.

    Its execution lets a device go, and takes it when it computes.
    """

    execution: Any
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

    def __getstate__(self) -> Dict[str, Any]:
        self.execution.release()
        state = {name: value for name, value in vars(self).items() if not _is_adapter(value)}
        state["has_accelerator"] = "accelerator" in state
        for name in _OF_THE_PROCESS:
            state.pop(name, None)
        state["optimizer"] = _plain_optimizer(self.optimizer)
        state["lr_scheduler"] = _plain_scheduler(self.lr_scheduler)
        handler = state["callback_handler"] = copy.copy(self.callback_handler)
        handler.optimizer, handler.lr_scheduler = state["optimizer"], state["lr_scheduler"]
        handler.train_dataloader = handler.eval_dataloader = None  # a loop makes its own
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """With an accelerator of its own; what this process computes with stays as it is."""
        has_accelerator = state.pop("has_accelerator")
        self.__dict__.update(state, _loss_reductions={})
        if has_accelerator:
            of_process = OwnAccelerateState()
            self.restore_accelerate_state()
            self.create_accelerator_and_postprocess()
            if of_process.is_set:
                of_process.restore()


def _is_adapter(value: Any) -> bool:
    """A closure over the trainer that this package put on it (adapt_old_overrides)."""
    is_local = isinstance(value, types.FunctionType) and "<locals>" in value.__qualname__
    return is_local and value.__module__.startswith("ipu_trainer.")


def _plain_optimizer(optimizer: Any) -> Any:
    """Without Accelerate's wrapper, which the next training puts around it again."""
    return optimizer.optimizer if type(optimizer).__module__.startswith("accelerate.") else optimizer


def _plain_scheduler(scheduler: Any) -> Any:
    held = getattr(scheduler, "optimizer", None)
    if held is _plain_optimizer(held):
        return scheduler
    plain = copy.copy(scheduler)
    plain.optimizer = _plain_optimizer(held)
    return plain
