"""Where a run computes: real IPUs (`sdk`), the simulator (`simulated`), or plain PyTorch (`host`)."""

from ipu_trainer.backends.base import Backend, Executor
from ipu_trainer.backends.select import BACKENDS, check_name, choose_backend

__all__ = ["BACKENDS", "Backend", "Executor", "check_name", "choose_backend"]
