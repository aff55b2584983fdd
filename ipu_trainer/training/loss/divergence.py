"""Stops a training whose loss or weights are NaN or infinite, before such weights are saved or evaluated.

    stop_when_diverged(trainer)    for an IPUTrainer; tasks do it. Trainer itself goes on to the end.

Losses are read where the loop waits for them anyway: at a log, an evaluation, a checkpoint, the end. Weights are read before each
checkpoint and at the end. In float16 on a GPU a step whose gradients overflow is skipped and the loss scale is halved, which is no
divergence; a loss that is no number for as many steps as the scale can be halved is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Tuple

import torch
from transformers import TrainerCallback

from ipu_trainer.errors import UserError
from ipu_trainer.training.state.checkpoints import last_complete_checkpoint

# GradScaler begins at 2**16; below 2**-16 float16 has no gradients left to save.
_HALVINGS = 32
_MOST_UNREAD = 1000


class LossStreak(NamedTuple):
    """Losses that were no numbers, one after the other: how many up to now, and the step of the first."""

    length: int = 0
    first_step: int = 0

    def after(self, step: int, is_finite: bool) -> LossStreak:
        if is_finite:
            return LossStreak()
        return LossStreak(self.length + 1, self.first_step if self.length else step)


def stop_when_diverged(trainer: Any) -> None:
    """Add a DivergenceGuard to an IPUTrainer. Its train() then raises UserError where it diverges."""
    guard = DivergenceGuard(trainer)
    trainer.add_callback(guard)
    trainer.observe_loss = guard.note_loss


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._unread: List[Tuple[int, torch.Tensor]] = []
        self._streak = LossStreak()
        skips_steps = bool(trainer.args.fp16) and not trainer.backend.has_executors
        self._longest = _HALVINGS if skips_steps else 1

    def note_loss(self, loss: torch.Tensor) -> None:
        """Take the loss of a forward and backward pass, before its step ends. Nothing waits for a GPU."""
        self._unread.append((self._trainer.state.global_step + 1, loss.detach().isfinite().all()))
        if len(self._unread) >= _MOST_UNREAD:
            self._read_losses()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._unread, self._streak = [], LossStreak()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._read_losses()
        if control.should_save:
            self._read_weights()

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._read_losses()
        self._read_weights()

    def _read_losses(self) -> None:
        if not self._unread:
            return
        steps, are_finite = zip(*self._unread)
        self._unread = []
        broken = self._trainer.sum_over_processes((~torch.stack(are_finite)).long())
        for step, number in zip(steps, broken.tolist()):
            self._streak = self._streak.after(step, number == 0)
            if self._streak.length >= self._longest:
                self._stop(f"the loss is NaN or infinite since step {self._streak.first_step}")

    def _read_weights(self) -> None:
        name = first_not_finite(self._trainer.execution.state_dict() or dict(self._trainer.model.named_parameters()))
        if name is not None:
            self._stop(f"{name} has weights that are NaN or infinite after step {self._trainer.state.global_step}")

    def _stop(self, what: str) -> NoReturn:
        args, state = self._trainer.args, self._trainer.state
        kept = last_complete_checkpoint(args.output_dir)
        keeps = f"{Path(kept).name} is from before" if kept else "there is no checkpoint from before"
        raise UserError(
            f"training diverged: {what} of {state.max_steps}. It stops here; in {args.output_dir} {keeps}. Lower --learning_rate, "
            f"which is {args.learning_rate:g}, warm it up for longer, or lower --max_grad_norm, and give another --output."
        )


def first_not_finite(tensors: Dict[str, torch.Tensor]) -> Optional[str]:
    """The name of the first tensor of floating point that holds a NaN or an infinite value; None for none."""
    floating = {name: value.detach() for name, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return None
    are_finite = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    return next((name for name, is_finite in zip(floating, are_finite) if not is_finite), None)
