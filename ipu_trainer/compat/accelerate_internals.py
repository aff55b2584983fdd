"""Accelerate's conversion of outputs to float32, and the state that its objects share."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Dict, List

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import operations

from ipu_trainer.compat.internals import Internal, replaced

FLOAT32_OUTPUTS = Internal(
    "accelerate.utils.operations.convert_to_fp32",
    "no KwargsHandler leaves out outputs that the step does not read",
    "0.20",
    "1.15",
    "tests/training/test_loss_only_forward.py::test_a_training_copies_no_logits_and_ends_in_the_same_weights",
)
SHARED_STATE = Internal(
    "accelerate.state.PartialState._shared_state",
    "with AcceleratorState's: a program has one state, and each new TrainingArguments resets it",
    "0.20",
    "1.15",
    "tests/training/test_trainer_features.py::test_a_trainer_keeps_its_precision_when_another_one_is_made",
)

ORIGINAL_FORWARD = Internal(
    "accelerate.Accelerator.prepare_model",
    "keeps the forward that it wraps in autocast as _original_forward, and has no public sign of it",
    "0.20",
    "1.15",
    "tests/training/test_loss_reduction.py::test_the_reduction_is_found_through_rounding",
)


def is_prepared(model: Any) -> bool:
    """Whether Accelerate has wrapped the model's forward, so that it computes under autocast."""
    return hasattr(model, "_original_forward")


def float32_outputs(make: Callable[[Any], Any]) -> ContextManager[None]:
    """Inside the block outputs of a model under autocast are converted with make(stock function)."""
    return replaced(FLOAT32_OUTPUTS, operations, make)


def shared_states() -> List[Dict[str, Any]]:
    """The dictionaries that all of Accelerate's state objects share. Writing to them changes Accelerate's state."""
    return [PartialState._shared_state, AcceleratorState._shared_state]
