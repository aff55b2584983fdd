"""Learning rates that stay the same within a host step, as a device has them."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch

from ipu_trainer.errors import UserError


def hold_learning_rates(scheduler: Any, updates_per_host_step: int, updates_per_step: int, name: Any) -> None:
    """Let a scheduler give all weight updates of a host step the rate of its first one.

    updates_per_step: weight updates of one step of the loop, which is a whole host step on a device and one update on the host.
    name: lr_scheduler_type. Raises UserError for a schedule that is no function of the step.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise UserError(
            f"lr_scheduler_type {name} changes the learning rate between the {updates_per_host_step} updates of a host step, "
            "which a device cannot. Use device_iterations=1, or linear or cosine."
        )
    scheduler.lr_lambdas = [
        functools.partial(_rate_of_host_step, function, updates_per_host_step, updates_per_step)
        for function in scheduler.lr_lambdas
    ]


def _rate_of_host_step(
    function: Callable[[int], float], updates_per_host_step: int, updates_per_step: int, step: int
) -> float:
    return function(step * updates_per_step // updates_per_host_step * updates_per_host_step)
