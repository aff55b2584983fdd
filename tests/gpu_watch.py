"""For tests on a GPU: whether training steps wait for it."""

import torch
from transformers import TrainerCallback


class NoWaiting(TrainerCallback):
    """From the end of step `first` to that of step `last`, whatever waits for the GPU raises RuntimeError."""

    def __init__(self, first, last):
        self.first, self.last, self.watched = first, last, 0

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.first:
            torch.cuda.set_sync_debug_mode("error")
        if state.global_step == self.last:
            torch.cuda.set_sync_debug_mode("default")
        self.watched += self.first < state.global_step <= self.last


def steps_without_waiting(trainer, first=3, last=7):
    """Train; returns how many steps were watched."""
    watch = NoWaiting(first, last)
    trainer.add_callback(watch)
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return watch.watched
