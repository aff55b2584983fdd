"""poptorch.optim: the optimizers that programs construct, and the weight update that the device computes from them."""

from __future__ import annotations

from ipu_trainer.simulator.optim.optimizers import (
    LAMB,
    SGD,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    VariableAttributes,
    lamb_update,
)

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes", "lamb_update"]
