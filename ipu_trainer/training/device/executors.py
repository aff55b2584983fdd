"""A model on a device: the executors that IPUTrainer drives.

Trainer's loop trains a module with an optimizer, one batch a step. Here a "batch" is a host step, DeviceModel replaces the module
and DeviceOptimizer the optimizer. DeviceModel has no parameters: the loop reads those every step (clipping, zero_grad), and each
read would copy all weights from the device.
"""

from __future__ import annotations

import copy
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn
from transformers.utils import logging

from ipu_trainer.backends import Backend
from ipu_trainer.backends.poptorch_options import make_options
from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.pipelining import pipelined
from ipu_trainer.pipelining.plan import check_depth
from ipu_trainer.training.device.device_optimizer import DeviceOptimizer
from ipu_trainer.training.device.host_step import LOSS_WEIGHT, NUM_ITEMS, HostStep, tensors
from ipu_trainer.training.device.written_weights import FetchedWeights
from ipu_trainer.training.execution import changed

logger = logging.get_logger(__name__)

Inputs = Mapping[str, Any]


class DeviceModel(nn.Module):
    """What Trainer's loop holds in place of the model: no parameters, everything else is the model's.

    Calling it runs the model on the device, forward only: code of subclasses may do that in evaluation.
    """

    def __init__(self, run: DeviceRun, is_for_training: bool) -> None:
        super().__init__()
        self.__dict__["run"] = run  # not a submodule
        self.is_for_training = is_for_training

    def forward(self, **inputs: Any) -> Any:
        if self.is_for_training:
            raise UserError(
                "training_step called the model, but on a device forward, backward and the weight update are one call. "
                "Override compute_loss, which runs on the device, or call super().training_step()."
            )
        return self.run.infer(inputs, lambda model, given: model(**given), ("forward",))

    def train(self, mode: bool = True) -> DeviceModel:
        self.training = mode
        return self

    def to(self, *args: Any, dtype: Any = None, **named: Any) -> DeviceModel:  # type: ignore[override]
        """Evaluation in float16, as fp16_full_eval asks; the device is where it is."""
        if dtype is torch.float16:
            self.run.infer_in_half()
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["run"].model, name)


class _Graph(nn.Module):
    """What is compiled: a function of the model and one micro-batch."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Dict[str, Any]], Any]) -> None:
        super().__init__()
        self.model = model
        self.__dict__["function"] = function

    def forward(self, **inputs: Any) -> Any:
        return self.__dict__["function"](self.model, inputs)


class DeviceRun:
    """One model, its executors for training and inference, and who has the newest weights.

    loss(model, inputs, num_items) is the loss of one micro-batch, a scalar. geometry counts this process's replicas.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: Backend,
        config: IPUConfig,
        geometry: BatchGeometry,
        loss: Callable[[nn.Module, Dict[str, Any], Any], torch.Tensor],
        pipelining: str = "generic",
        seed: Optional[int] = None,
        half: bool = False,
        compile_only: bool = False,
        inference_replicas: int = 1,
        recompute: bool = False,
        process: Tuple[int, int] = (0, 1),
    ) -> None:
        self.model = model
        self.backend = backend
        self.config = config
        self.geometry = geometry
        self.training_model = DeviceModel(self, is_for_training=True)
        self.inference_model = DeviceModel(self, is_for_training=False)
        self.compile_seconds = 0.0
        self.num_weight_copies = 0
        self.in_graph = False
        self._loss = loss
        self._pipelining = pipelining
        self._seed = seed
        self._half = half
        self._compile_only = compile_only
        self._inference_replicas = inference_replicas
        self._recompute = recompute
        self._process = process
        self._half_inference = False
        self._weights_are_old = False
        self._pipeline: Any = None
        self._trainer: Any = None
        self._trained_shapes: Any = None
        self._fetched_weights: Optional[FetchedWeights] = None
        self._inference: Dict[Tuple[Any, ...], Any] = {}
        self._optimizer: Optional[DeviceOptimizer] = None
        self._rng_state: Optional[List[int]] = None

    # Life ---------------------------------------------------------------------------------------------------------

    def prepare(self) -> Any:
        """Pipeline the model, if it is not yet. Returns the Pipeline."""
        if self._pipeline is None:
            self._pipeline = pipelined(self.model, self.config, self.backend.poptorch, self._pipelining)
            if self._half:
                self._pipeline.module.half()
            logger.info("pipeline:\n%s", self._pipeline.describe())
        return self._pipeline

    def optimizer_for(self, optimizer: torch.optim.Optimizer, max_grad_norm: float, loss_scaling: float) -> Any:
        """What replaces the optimizer: the device makes its updates."""
        if isinstance(optimizer, DeviceOptimizer) and optimizer is self._optimizer:
            if not optimizer.is_started:
                optimizer.start(self.prepare().replaced)
            return optimizer
        host = optimizer.host if isinstance(optimizer, DeviceOptimizer) else optimizer
        made = DeviceOptimizer(host, self, max_grad_norm, loss_scaling, self.config.auto_loss_scaling)
        check_depth(self.prepare().placements.get(False, ()), self.geometry.gradient_accumulation)
        made.start(self.prepare().replaced)
        self._optimizer = made
        return made

    def release(self) -> None:
        """Bring everything home: weights and optimizer state are fetched, IPUs let go, the model is as it was."""
        if self._trainer is not None:
            self._rng_state = self.rng_state
            self._trainer.destroy()
            self._trainer = None
        for executor in self._inference.values():
            executor.destroy()
        self._inference.clear()
        if self._optimizer is not None:
            self._optimizer.stop()
        if self._pipeline is not None:
            self._pipeline.undo()
            if self._half:
                self.model.float()
            self._pipeline = None

    def fetch_weights(self) -> None:
        """Copy the weights from the device, if it has newer ones."""
        if self._trainer is not None and self._trainer.isCompiled() and self._weights_are_old:
            self._trainer.copyWeightsToHost()

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """The plain model's newest state, under the names of its Hugging Face checkpoint."""
        self.fetch_weights()
        source = self.model if self._pipeline is None else self._pipeline
        return {name: tensor.detach() for name, tensor in source.state_dict().items()}

    # Training -----------------------------------------------------------------------------------------------------

    def train_step(self, step: HostStep) -> torch.Tensor:
        """One host step. Returns the mean loss of what output_mode returns, a scalar on the CPU."""
        given = self._enter(step.inputs)
        self._check_size(given)
        assert self._optimizer is not None
        if not self._optimizer.is_started:  # released within a training, to be pickled
            self._optimizer.start(self.prepare().replaced)
        self._prepare_training(given)
        assert self._fetched_weights is not None
        self.end_inference()
        # Attaching sends the optimizer's state, old learning rates included: the new ones come after it.
        if not self._compile_only and not self._trainer.isAttachedToDevice():
            self._trainer.attachToDevice()
        written = self._fetched_weights.written()  # by callbacks and subclasses, into the model
        if written:
            logger.info(
                "%d weights were written on the host (%s, ...) and are sent to the device", len(written), written[0]
            )
            self._trainer.copyWeightsToDevice()
        if self._optimizer.push():
            self._trainer.setOptimizer(self._optimizer.device)
        losses = self._call(self._trainer, given)
        self._fetched_weights.forget()
        self._weights_are_old = True
        return self._mean_loss(losses, step.shares)

    def _has_fetched(self) -> None:
        self.num_weight_copies += 1
        self._weights_are_old = False

    def compile_training(self, inputs: Inputs) -> None:
        """Compile for a host step of these shapes; nothing runs."""
        self._prepare_training(self._enter(inputs))

    def _prepare_training(self, given: Dict[str, Any]) -> None:
        shapes = _shapes(given)
        if self._trainer is not None and shapes != self._trained_shapes:
            others = [name for name in shapes if shapes[name] != self._trained_shapes.get(name)]
            logger.warning(
                "%s changed from %s to %s: compiling again. On an IPU that takes minutes each time; let the data "
                "collator pad to a fixed length (padding='max_length').",
                ", ".join(others),
                [self._trained_shapes.get(name) for name in others],
                [shapes[name] for name in others],
            )
            self._rng_state = self.rng_state
            self._trainer.destroy()
            self._trainer = None
        if self._trainer is None:
            assert self._optimizer is not None
            self.prepare().annotate(False)
            self._pipeline.module.train()
            graph = _Graph(self._pipeline.module, self._weighted_loss)
            given_options = (self._seed, self._compile_only, self.geometry.replicas, self._process)
            options = make_options(self.config, self.backend, False, *given_options)
            if self._recompute and self.config.ipus_per_replica == 1:  # pipelines recompute anyway
                options._Popart.set("autoRecomputation", int(self.backend.popart.RecomputationType.Standard))
            self._trainer = self.backend.poptorch.trainingModel(graph, options, self._optimizer.device)
            self._fetched_weights = FetchedWeights(self._trainer, self._pipeline.module, self.model, self._has_fetched)
            self._trained_shapes = shapes
            self._compile(self._trainer, given)
            if self._rng_state is not None:
                self._trainer.rng_state = self._rng_state
                self._rng_state = None
        elif not self._trainer.isAttachedToDevice():
            self.prepare().annotate(False)

    def _weighted_loss(self, model: nn.Module, inputs: Dict[str, Any]) -> Any:
        """What the training executor compiles: the loss of one micro-batch, by its share of the update, as identity_loss."""
        num_items, weight = inputs.pop(NUM_ITEMS, None), inputs.pop(LOSS_WEIGHT, None)
        loss = self._loss(model, inputs, None if num_items is None else num_items[0])
        if num_items is not None:
            # The device takes the mean over accumulation and replicas; these losses are parts of a sum.
            loss = loss * (self.geometry.gradient_accumulation * self.geometry.replicas)
        loss = loss.mean() if loss.dim() else loss
        if weight is not None:  # a mean over no labels is NaN, and is none of the update
            loss = torch.where(weight[0] > 0, loss * weight[0].to(loss.dtype), torch.zeros_like(loss))
        return self.backend.poptorch.identity_loss(loss, reduction="none")

    def _mean_loss(self, losses: torch.Tensor, shares: Optional[torch.Tensor]) -> torch.Tensor:
        """Of all samples, or labels, that the returned losses are of."""
        returned, mode = losses.detach().float().cpu().reshape(-1), self.config.output_mode
        if mode == "sum":
            return returned.sum() / (self.geometry.samples_per_host_step // self.geometry.micro_batch)
        if shares is None or mode == "all":
            return returned.mean()
        return returned.sum() / shares[-len(returned) :].sum()

    def _check_size(self, given: Dict[str, Any]) -> None:
        expected = self.geometry.samples_per_host_step
        for name, tensor in tensors(given):
            if tensor.dim() and tensor.shape[0] != expected:
                raise UserError(
                    f"{name} of a training batch holds {tensor.shape[0]} samples, but a host step takes {expected} "
                    f"({self.geometry.describe()}). Let get_train_dataloader return batches of {expected} and drop the rest."
                )

    # The generators and the optimizer's state ---------------------------------------------------------------------

    @property
    def rng_state(self) -> Optional[List[int]]:
        """The device's generators; None before anything ran."""
        if self._trainer is not None and self._trainer.isCompiled():
            return [int(number) for number in self._trainer.rng_state]
        return self._rng_state

    @rng_state.setter
    def rng_state(self, state: Optional[List[int]]) -> None:
        self._rng_state = None if state is None else [int(number) for number in state]
        if self._rng_state is not None and self._trainer is not None and self._trainer.isCompiled():
            self._trainer.rng_state = self._rng_state
            self._rng_state = None

    # Inference ----------------------------------------------------------------------------------------------------

    @property
    def inference_samples_per_call(self) -> Tuple[int, int]:
        """(micro-batches, of this process's replicas) that one inference call takes."""
        return self.config.inference_device_iterations * self._inference_replicas, self._inference_replicas

    def begin_inference(self) -> None:
        """Let inference see the newest weights and have the IPUs."""
        if self._trainer is not None and self._trainer.isAttachedToDevice():
            self._trainer.detachFromDevice()
        for executor in self._inference.values():
            if executor.isAttachedToDevice():
                executor.copyWeightsToDevice()

    def infer(self, inputs: Inputs, function: Callable[[nn.Module, Dict[str, Any]], Any], key: Tuple[Any, ...]) -> Any:
        """function(model, micro-batch) of every micro-batch of one call; tensors are joined along dimension 0."""
        given = self._enter(inputs)
        shapes = tuple(sorted((name, *map(str, shape)) for name, shape in _shapes(given).items()))
        executor = self._inference.get((*key, shapes))
        self.prepare().annotate(True)
        self._pipeline.module.eval()
        if executor is None:
            options = make_options(
                self.config, self.backend, True, self._seed, self._compile_only, self._inference_replicas
            )
            graph = _Graph(self._pipeline.module, function)
            executor = self.backend.poptorch.inferenceModel(graph.eval(), options)
            self.end_inference()
            self._compile(executor, given)
            self._inference[(*key, shapes)] = executor
        elif not executor.isAttachedToDevice():
            self.end_inference()
        return self._call(executor, given)

    def infer_in_half(self) -> None:
        """From now on the model has float16 weights, as Trainer's fp16_full_eval leaves it."""
        if not self._half_inference:
            self.release()
            self.model.half()
            self._half_inference = True

    def on_host(self) -> nn.Module:
        """The model with the newest weights, in float32, to run a few samples outside of the device."""
        self.fetch_weights()
        if not (self._half or self._half_inference) and self._pipelining != "optimum":
            return self.model
        twin = copy.deepcopy(self.model).float()
        twin.load_state_dict(self.state_dict())
        return twin.eval()

    def end_inference(self) -> None:
        """Let the IPUs go, for training to go on."""
        for executor in self._inference.values():
            if executor.isAttachedToDevice():
                executor.detachFromDevice()

    # Calls --------------------------------------------------------------------------------------------------------

    def _compile(self, executor: Any, given: Dict[str, Any]) -> None:
        began = time.perf_counter()
        self._call(executor.compile, given)
        self.compile_seconds += time.perf_counter() - began

    def _call(self, function: Callable[..., Any], given: Dict[str, Any]) -> Any:
        with changed(self, in_graph=True):
            return function(**given)

    def _enter(self, inputs: Inputs) -> Dict[str, Any]:
        given = {name: value for name, value in inputs.items() if value is not None}
        if not (self._half or self._half_inference):
            return given
        return {
            name: value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in given.items()
        }


def _shapes(given: Mapping[str, Any]) -> Dict[str, Sequence[Any]]:
    return {
        name: (*value.shape, value.dtype) if isinstance(value, torch.Tensor) else (repr(value),)
        for name, value in given.items()
    }
