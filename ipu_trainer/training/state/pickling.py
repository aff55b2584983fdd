"""A trainer as bytes, for pickle, cloudpickle, copy.deepcopy, spawned processes and Ray: before, after and during training.

What belongs to the process stays behind and is rebuilt where the trainer is read: Accelerate's accelerator, whose list of data
loaders holds weak references once a training has run (stock Trainer 5 does not pickle from then on), caches by id(), and the
executors of a device. Weights, the optimizer's state (the device's too) and the device's generators travel.
"""

from __future__ import annotations

import copy
import types
from typing import Any, Dict

from ipu_trainer.training.state.accelerate_state import OwnAccelerateState

# Attributes that only this process can have; the accelerator is among them where Trainer makes one (not in 4.29).
_OF_THE_PROCESS = ("accelerator", "gather_function", "_operations", "_foldings", "_loss_reductions")


def state_to_pickle(trainer: Any) -> Dict[str, Any]:
    """The attributes of a trainer that travel. Its device run lets go of the device, and takes it again when it computes."""
    if trainer._device_run is not None:
        trainer._device_run.release()
    state = {name: value for name, value in vars(trainer).items() if not _is_adapter(value)}
    state["has_accelerator"] = "accelerator" in state
    for name in _OF_THE_PROCESS:
        state.pop(name, None)
    state["optimizer"] = _plain_optimizer(trainer.optimizer)
    state["lr_scheduler"] = _plain_scheduler(trainer.lr_scheduler)
    handler = state["callback_handler"] = copy.copy(trainer.callback_handler)
    handler.optimizer, handler.lr_scheduler = state["optimizer"], state["lr_scheduler"]
    handler.train_dataloader = handler.eval_dataloader = None  # a loop makes its own
    return state


def rebuild(trainer: Any, state: Dict[str, Any]) -> None:
    """Give a new object this state, and an accelerator of its own; what this process computes with stays as it is."""
    has_accelerator = state.pop("has_accelerator")
    vars(trainer).update(state)
    if not has_accelerator:
        return
    of_process = OwnAccelerateState()
    trainer._accelerate_state.restore()
    trainer.create_accelerator_and_postprocess()
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
