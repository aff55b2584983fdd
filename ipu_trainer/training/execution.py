"""Where a trainer computes, behind one interface: on the host or on a device. Chosen once, from the backend.

IPUTrainer delegates to its execution what differs between the two, and never asks which it has:

    step of Trainer's loop     HostExecution (host/host_execution.py)         DeviceExecution (device/device_execution.py)
    training loader            batches of coalesced micro-batches             batches of whole host steps
    wrapped model              the model, in Accelerate's wrappers            a module without parameters; calls go to the device
    training step              forward and backward, weighed by samples       one call: all updates of a host step
    prediction step            the stock one                                  whole micro-batches; the rest on the host
    evaluation                 the stock loop                                 training lets go of the device, inference takes it
    state                      the model's own                                fetched from the device when it is read
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, ContextManager, Dict, List, Optional

import torch
from torch import nn

from ipu_trainer.compat.stock_trainer import StockLoop
from ipu_trainer.config.batching import BatchGeometry, EpochPlan
from ipu_trainer.errors import UserError

# transformers.Trainer's own method for the step, which an execution may call, with its last arguments given.
Stock = Callable[..., Any]


class Execution:
    """What IPUTrainer asks of the place where it computes; here as stock Trainer does it. `stock` is Trainer's own step."""

    updates_per_step = 1  # weight updates of one step of Trainer's loop

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def describe(self, checkpoint: Optional[str] = None) -> Dict[str, Any]:
        """What run.json says of how micro-batches are computed, by a training that resumes from this checkpoint."""
        return {}

    def describe_batches(self, checkpoint: Optional[str] = None) -> str:
        """The same as lines for the batch table; may be empty."""
        return ""

    def run_loop(self, geometry: BatchGeometry, loop: StockLoop, stock: Stock) -> Any:
        """One training: stock(loop), with the loader, arguments and layers as this place needs them. A TrainOutput."""
        return stock(loop)

    def epoch_plan(self) -> Optional[EpochPlan]:
        """What one epoch does, where its samples must be whole host steps; None where they need not, or a stream is read."""
        return None

    def loader_geometry(self) -> BatchGeometry:
        """How a training loader of a subclass groups samples: each of its micro-batches is one batch of this process."""
        raise NotImplementedError

    def train_dataloader(self, stock: Stock) -> Any:
        return stock()

    def inference_batches(self) -> ContextManager[None]:
        """Inside the block per_device_eval_batch_size is what one inference call takes."""
        return contextlib.nullcontext()

    def wrap_model(self, model: nn.Module, training: bool, stock: Stock) -> Any:
        return stock()

    def training_step(self, model: nn.Module, inputs: Any, stock: Stock) -> torch.Tensor:
        """The loss of a batch, for the log, when its gradients are added up. stock(inputs): the stock step of some samples."""
        raise NotImplementedError

    def prediction_step(
        self, model: nn.Module, inputs: Any, loss_only: bool, ignore_keys: Optional[List[str]], stock: Stock
    ) -> Any:
        """(loss, logits, labels), each may be None. stock(model, inputs): Trainer's own step of some samples."""
        return stock(model, inputs)

    def generates(self, model: nn.Module) -> bool:
        """Whether this place has a generate() of its own for what the evaluation loop holds."""
        return False

    def evaluation(self) -> ContextManager[None]:
        """Around an evaluation or prediction loop."""
        return contextlib.nullcontext()

    def prepare_inputs(self, inputs: Any, stock: Stock) -> Any:
        return stock()

    def floating_point_ops(self, inputs: Any, stock: Stock) -> int:
        return int(stock())

    def adjust_logs(self, logs: Dict[str, float]) -> None:
        """Take out of a log what this place does not know, and add what it knows."""

    def model_on_host(self) -> nn.Module:
        """The model with its newest weights, to call outside of the device: to generate, to look inside."""
        model: nn.Module = self.trainer.model
        return model

    def state_dict(self) -> Optional[Dict[str, torch.Tensor]]:
        """The newest weights under their Hugging Face names; None where the model holds them itself."""
        return None

    def write_checkpoint(self, folder: str) -> None:
        """Add to a checkpoint of the running training what a resumed one needs of this place."""

    def release(self) -> None:
        """Bring weights and optimizer state to the host, and let a device go."""

    def forget_training(self) -> None:
        """Release, and drop what an earlier training left."""

    def forget_model(self) -> None:
        """Drop what was found out of the model, which is replaced by another one."""

    def load_optimizer_state(self, checkpoint: Optional[str], stock: Stock) -> None:
        """Raises UserError for a state that another place wrote in its own form."""
        stock(checkpoint)


@contextlib.contextmanager
def changed(target: Any, **values: Any) -> Any:
    """Inside the block these attributes of target have other values."""
    given = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in given.items():
            setattr(target, name, value)


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
