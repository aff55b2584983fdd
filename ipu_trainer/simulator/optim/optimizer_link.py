"""The optimizer of a training executor: the program's object, the device's hyper-parameters, and whose state is newer.

The program may change its optimizer, replace it, save its state or load one at any time, attached or not. The device reads it
at setOptimizer() and before a run; its state is copied to the host on demand.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Dict, Optional, Tuple

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.enums import MeanReductionStrategy, ReductionType
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.optim import optimizers as optim
from ipu_trainer.simulator.optim.hyperparameters import AttributeTracker, HyperParameters, read
from ipu_trainer.simulator.optim.loss_scaling import AutomaticLossScaling
from ipu_trainer.simulator.optim.weight_update import WeightUpdate
from ipu_trainer.simulator.options.options import Options
from ipu_trainer.simulator.state.device_weights import DeviceWeights


class OptimizerLink:
    """Ties one optimizer of the program to one on the device, which exists while the model is compiled."""

    def __init__(self, options: Options, executor: Any) -> None:
        """The optimizer keeps `executor` alive, and with it the device's weights, as poptorch's do."""
        self._executor = executor
        self.optimizer: Optional[torch.optim.Optimizer] = None
        self.update: Optional[WeightUpdate] = None
        self._options = options
        self._tracker = AttributeTracker(options._relax_optimizer_checks)
        self._hyper: Optional[HyperParameters] = None
        self._device_is_stale = False

    @property
    def _poptorch_optimizer(self) -> Optional[optim.Optimizer]:
        """The optimizer, if its class can hold the device's state."""
        return self.optimizer if isinstance(self.optimizer, optim.Optimizer) else None

    def set(self, optimizer: torch.optim.Optimizer) -> None:
        """Use this optimizer, or changed hyper-parameters of the same one.

        Raises what reading it raises, Error for a changed constant, ValueError for a type of
        accumulator that the compiled reduction cannot serve.
        """
        automatic = bool(self._options._Popart.options.get("automaticLossScalingSettings.enabled", False))
        hyper = read(optimizer, self._tracker, automatic)
        self._pick_mean_strategy(hyper)
        if self._hyper is not None and self.update is not None:
            changed = hyper.changed_constants(self._hyper)
            if changed:
                raise createPoptorchError(
                    f"{', '.join(changed)} of the optimizer changed, and was compiled in as a constant. Pass it to the "
                    "poptorch.optim constructor or call optimizer.variable_attrs.markAsVariable() before compiling."
                )
        replaced = self.optimizer is not None and optimizer is not self.optimizer
        if replaced and self.update is not None:
            self.read_state()
            self.release()
            if isinstance(optimizer, optim.Optimizer):
                optimizer.ipu_state_is_dirty = True
        if isinstance(optimizer, optim.Optimizer):
            optimizer.state_dict = MethodType(_state_dict_of, self)  # type: ignore[method-assign]
        self.optimizer = optimizer
        if hyper != self._hyper or replaced:
            self._hyper = hyper
            self._device_is_stale = True

    def _pick_mean_strategy(self, hyper: HyperParameters) -> None:
        """A sum in float16 would overflow: it becomes a running mean, which cannot change after compilation."""
        training = self._options.Training
        post = training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Post
        is_mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        combined = hyper.kind == "SGD1"  # one tensor for velocity and sum: there is no running mean of that
        if hyper.accum_type != torch.float16 or combined or not (post and is_mean):
            return
        if self.update is not None:
            raise UserError(
                "The optimizer accumulates in float16 now, for which the mean reduction strategy must be Running, but "
                "the model is already compiled with Post. Call destroy() on the executor first."
            )
        self._options._unfreeze()
        training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
        self._options._freeze()

    def bytes_per_parameter(self) -> Tuple[int, int]:
        """Bytes on the chip for each element of a parameter: optimizer state, and the sum of gradients."""
        assert self._hyper is not None
        location = self._options.TensorLocations
        off_chip = location.exists("location_optimizer") and location.location_optimizer.get("onChip", 1) == 0
        state = 0 if off_chip else self._hyper.state_bytes_per_parameter
        return state, self._hyper.accumulator_bytes_per_parameter

    # The device's side.

    def compile(self, weights: DeviceWeights) -> WeightUpdate:
        """Create the device's weight update."""
        assert self._hyper is not None
        popart = self._options._Popart.options
        wants_scaling = popart.get("automaticLossScalingSettings.enabled", False)
        automatic = AutomaticLossScaling(popart) if wants_scaling else None
        stochastic = bool(popart.get("enableStochasticRounding", False))
        self.update = WeightUpdate(weights, self._hyper, stochastic, automatic)
        self._device_is_stale = False
        return self.update

    def destroy(self) -> None:
        """Drop the device's weight update. State that was not fetched is lost: call read_state() first."""
        self.release()
        self.update = None

    def release(self) -> None:
        """Restore state_dict() of the program's optimizer."""
        if self._poptorch_optimizer is not None:
            self._poptorch_optimizer.__dict__.pop("state_dict", None)

    def update_device(self) -> None:
        """Let the device use the hyper-parameters of the last set()."""
        if self._device_is_stale and self.update is not None and self._hyper is not None:
            self.update.set(self._hyper)
            self._device_is_stale = False

    # The state.

    def attached(self) -> None:
        """After attaching: send the host's state to the device; without one, the device's is the newer."""
        self.update_device()
        optimizer = self._poptorch_optimizer
        if optimizer is None:
            return
        if optimizer.has_state():
            optimizer.ipu_state_is_dirty, optimizer.host_state_is_dirty = True, False
            self.write_state()
        else:
            optimizer.ipu_state_is_dirty, optimizer.host_state_is_dirty = False, True

    def has_run(self) -> None:
        """The device's state is newer than the host's."""
        if self._poptorch_optimizer is not None:
            self._poptorch_optimizer.host_state_is_dirty = True

    def read_state(self) -> None:
        """Fetch the optimizer's state if the device's is newer."""
        optimizer = self._poptorch_optimizer
        if optimizer is None:
            return
        if not optimizer.host_state_is_dirty:
            logger.debug("Using cached optimiser state dict")
            return
        if self.update is None:
            raise createPoptorchError("Model has not been compiled or has been destroyed.")
        logger.debug("Writing optimiser state tensors from IPU to host.")
        on_host = torch.optim.Optimizer.state_dict(optimizer)  # type: ignore[arg-type]  # every subclass is one
        optimizer.set_state_dict({**self.update.read(), **on_host})
        optimizer.ipu_state_is_dirty = False

    def write_state(self) -> None:
        """Send a loaded state to the device."""
        optimizer = self._poptorch_optimizer
        if optimizer is None or not optimizer.ipu_state_is_dirty or self.update is None:
            return
        if optimizer.has_state():
            self.update.write(optimizer.get_state_dict())
            logger.debug("Writing optimiser state tensors from host to IPU memory")
        optimizer.ipu_state_is_dirty = False


def _state_dict_of(link: OptimizerLink) -> Dict[str, Any]:
    """state_dict() of an optimizer that belongs to an executor."""
    link.read_state()
    optimizer = link.optimizer
    assert isinstance(optimizer, optim.Optimizer)
    return optimizer.get_state_dict()
