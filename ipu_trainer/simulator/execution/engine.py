"""One host step: micro-batches through the model, gradients reduced, weights updated, outputs gathered.

A micro-batch runs as a whole, in eager PyTorch, whatever the pipeline: stages affect when something is computed, never its
value. All micro-batches of an update use the same weights, as on the device, which drains the pipeline before an update.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ipu_trainer.simulator.arguments.call_arguments import BoundArguments, micro_batch_of, micro_batches_per_host_step
from ipu_trainer.simulator.arguments.nested_values import tensors_of
from ipu_trainer.simulator.enums import CommGroupType, MeanReductionStrategy, OutputMode, ReductionType
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.execution.anchors import Anchors
from ipu_trainer.simulator.execution.coalescing import (
    check_coalescible,
    check_equal,
    coalescing_enabled,
    concatenate,
    refusal,
    split_outputs,
)
from ipu_trainer.simulator.execution.compilation import Compilation, modes
from ipu_trainer.simulator.execution.outputs import OutputCollector
from ipu_trainer.simulator.forward import context as running
from ipu_trainer.simulator.forward.blocks import BlockObserver, BlockTracker
from ipu_trainer.simulator.forward.observer import ForwardObserver, final_loss
from ipu_trainer.simulator.optim.weight_update import Slot, WeightUpdate
from ipu_trainer.simulator.options.options import SYNTHETIC_OFF, Options
from ipu_trainer.simulator.state.device_weights import DeviceWeights, InstalledWeights
from ipu_trainer.simulator.state.random_state import DeviceRandom


def enter_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor as an input of the model: detached, on the device, narrowed to the device's types.

    64-bit integers are narrowed to 32 bits but stay 64-bit tensors, which torch requires of indices.
    """
    tensor = tensor.detach()
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    elif tensor.dtype == torch.int64:
        tensor = tensor.to(torch.int32).to(torch.int64)
    return tensor.to(device)


class _HostStep(NamedTuple):
    """One call: its inputs, the arguments that were compiled, the device's weights in the model, and the outputs so far."""

    inputs: List[torch.Tensor]
    compiled: BoundArguments
    installed: InstalledWeights
    outputs: OutputCollector


class Engine:
    """Executes host steps of one compiled model."""

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options,
        compilation: Compilation,
        weights: DeviceWeights,
        optimizer: Optional[WeightUpdate],
        random: DeviceRandom,
        device: torch.device,
    ) -> None:
        self._model = model
        self.options = options
        self.compilation = compilation
        self._weights = weights
        self.optimizer = optimizer
        self._random = random
        self._device = device
        self.anchors = Anchors(options.anchored_tensors, weights, optimizer)
        self.observers: List[BlockObserver] = []
        self._iterations = int(options.device_iterations)
        self._accumulation = int(options.Training.gradient_accumulation)
        self._replicas = int(options.replication_factor)
        self._coalesces = coalescing_enabled() and optimizer is not None and self._accumulation > 1
        self._verified = False

    def run(self, bound: BoundArguments, like: BoundArguments) -> List[torch.Tensor]:
        """One host step. Returns the model's output tensors, on the host."""
        options = self.options
        given = bound.tensors(like)
        inputs = [enter_device(tensor, self._device) for tensor in given]
        if options._Popart.options.get("syntheticDataMode", SYNTHETIC_OFF) != SYNTHETIC_OFF:
            inputs = [torch.randn_like(t) if t.is_floating_point() else torch.zeros_like(t) for t in inputs]
        for position in self.compilation.written_inputs:
            inputs[position] = inputs[position].clone()
        if self._coalesces:
            check_coalescible(self)
        with contextlib.ExitStack() as stack:
            step = _HostStep(inputs, like, stack.enter_context(self._weights.installed()), self._new_collector())
            stack.enter_context(self._random.running())
            stack.enter_context(modes(self.compilation, self._device))
            stack.enter_context(self.compilation.modes_of_modules(self._model))
            for iteration in range(self._iterations):
                reduced = self._gradients(step, iteration)
                if reduced is not None and self.optimizer is not None:
                    self.optimizer.step(reduced, self._random.rounding)
                self.anchors.collect(reduced)
            self.anchors.finish()
        with torch.no_grad():
            for position in self.compilation.written_inputs:  # forward's writes are visible to the program
                given[position].copy_(inputs[position])
        return step.outputs.result()

    def _new_collector(self) -> OutputCollector:
        mode, period = OutputMode(self.options.output_mode), int(self.options.output_return_period)
        return OutputCollector(mode, period, self._iterations, self._accumulation, self._replicas)

    def _gradients(self, step: _HostStep, iteration: int) -> Optional[Dict[int, torch.Tensor]]:
        """The gradients of one weight update; None in inference. Collects the outputs."""
        if not self._coalesces:
            return self._one_by_one(step, iteration)
        if self._verified:
            return self._coalesced(step, iteration)
        buffers = [copy.clone() for variable in self._weights.buffers for copy in variable.copies]
        expected = self._one_by_one(step._replace(outputs=self._new_collector()), iteration)
        found = self._coalesced(step, iteration)
        now = [copy for variable in self._weights.buffers for copy in variable.copies]
        if not all(torch.equal(before, after) for before, after in zip(buffers, now)):
            for before, after in zip(buffers, now):
                after.copy_(before)
            raise refusal("forward changes a buffer, such as running statistics, once for each of them")
        check_equal(expected or {}, found)
        self._verified = True
        return found

    def _one_by_one(self, step: _HostStep, iteration: int) -> Optional[Dict[int, torch.Tensor]]:
        gradients = None if self.optimizer is None else Gradients(self.optimizer, step.installed, self.options)
        for accumulation in range(self._accumulation):
            for replica in range(self._replicas):
                args, kwargs = step.compiled.with_tensors(self._inputs_of(step, iteration, accumulation, replica))
                step.installed.use_replica(replica)
                outputs = self._micro_batch(args, kwargs, gradients, replica)
                step.outputs.add((iteration, accumulation, replica), outputs)
        return None if gradients is None else gradients.reduced()

    def _coalesced(self, step: _HostStep, iteration: int) -> Dict[int, torch.Tensor]:
        """Reduced gradients of an update by parameter, as _one_by_one(), with one forward and backward for each replica."""
        assert self.optimizer is not None
        count, mode = self._accumulation, OutputMode(self.options.output_mode)
        gradients = Gradients(self.optimizer, step.installed, self.options)
        outputs = []
        for replica in range(self._replicas):
            inputs = [self._inputs_of(step, iteration, accumulation, replica) for accumulation in range(count)]
            args, kwargs = step.compiled.with_tensors([concatenate(parts) for parts in zip(*inputs)])
            step.installed.use_replica(replica)
            outputs.append(split_outputs(self._micro_batch(args, kwargs, gradients, replica, count), count, mode))
        for accumulation in range(count):
            for replica in range(self._replicas):
                step.outputs.add((iteration, accumulation, replica), outputs[replica][accumulation])
        return gradients.reduced()

    def _inputs_of(self, step: _HostStep, iteration: int, accumulation: int, replica: int) -> List[torch.Tensor]:
        """The inputs of one micro-batch."""
        options = self.options
        groups = self._replicas // int(options.input_group_size)
        index = (iteration * self._accumulation + accumulation) * groups + input_group(replica, options)
        return [micro_batch_of(tensor, index, micro_batches_per_host_step(options), options) for tensor in step.inputs]

    def _micro_batch(
        self,
        args: Sequence[Any],
        kwargs: Dict[str, Any],
        gradients: Optional[Gradients],
        replica: int,
        count: int = 1,
    ) -> List[torch.Tensor]:
        """Forward and backward of one micro-batch, or of `count` coalesced ones. Returns the outputs."""
        training = gradients is not None
        forward = ForwardObserver(self._device, mixed=self.compilation.has_half)
        resolver = self.options._execution_strategy._stages_manager
        blocks = BlockTracker(resolver, self.observers) if self.observers else None
        with contextlib.ExitStack() as stack:
            for observer in self.observers:
                stack.enter_context(observer.micro_batch())
            with torch.set_grad_enabled(training), running.on_ipu(forward, training, blocks):
                if blocks is not None:
                    blocks.start()
                result = self._model(*args, **kwargs)
                if blocks is not None:
                    blocks.finish()
            if gradients is not None:
                losses, compiled = forward.losses, self.compilation
                same = len(losses) == compiled.num_losses  # else forward took another branch than at compilation
                loss = losses[compiled.loss_index if same else final_loss(losses)]
                for observer in self.observers:
                    observer.loss_found(loss)
                gradients.add(loss, replica, count)
                for observer in self.observers:
                    observer.backward_done()
        return tensors_of(result)


def input_group(replica: int, options: Options) -> int:
    """The index of the share of the inputs that a replica gets."""
    size, kind = int(options.input_group_size), options.input_cgt
    if size == 1:
        return replica
    if kind == CommGroupType.Orthogonal:
        return int(replica % (options.replication_factor // size))
    return replica // size


class Gradients:
    """The gradients of one weight update, summed up over micro-batches and replicas.

    Where weights and sums are float32 and shared by all replicas, autograd accumulates in place. Otherwise each micro-batch's
    gradient is added to a separate sum, in the optimizer's accum_type.
    """

    def __init__(self, optimizer: WeightUpdate, installed: InstalledWeights, options: Options) -> None:
        hyper = optimizer.hyper
        training = options.Training
        self._optimizer = optimizer
        self._scaling = optimizer.last_loss_scaling = optimizer.loss_scaling
        self._mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        self._accumulation = int(training.gradient_accumulation)
        self._num_processes = int(options.Distributed.numProcesses)
        self._count = self._accumulation * int(options.replication_factor) * self._num_processes
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        self._running_mean = self._mean and strategy == MeanReductionStrategy.Running
        self._mean_of_loss = self._mean and strategy == MeanReductionStrategy.PostAndLoss
        self._added = 0
        slots: Dict[int, List[Slot]] = {}
        for slot in optimizer.slots:
            slots.setdefault(id(slot.variable), []).append(slot)
        self._direct: List[Tuple[Slot, torch.Tensor]] = []
        self._summed: List[Tuple[List[Slot], torch.Tensor]] = []
        self._sums: Dict[int, torch.Tensor] = {}
        self._accum_type = hyper.accum_type
        in_place = hyper.accum_type == torch.float32 and not self._running_mean
        for variable, host in installed.tensors():
            mine = slots.get(id(variable))
            if mine is None or not host.requires_grad:
                continue
            if in_place and host.dtype == torch.float32 and variable.group_of_replica is None:
                self._direct.append((mine[0], host))
            else:
                self._summed.append((mine, host))

    def add(self, loss: torch.Tensor, replica: int, count: int = 1) -> None:
        """Backward of one micro-batch, or of the mean of `count` coalesced ones."""
        if loss.requires_grad:
            seed = self._scaling / self._accumulation if self._mean_of_loss else self._scaling
            seed *= 1 if self._running_mean else count
            # Computed in float32 and then narrowed, so that a scale beyond float16's range becomes infinite, as on the device.
            scaled = torch.full(loss.shape, seed, device=loss.device).to(loss.dtype)
            loss.backward(None if loss.dim() == 0 and seed == 1.0 else scaled)
        for slots, host in self._summed:
            if host.grad is None:
                continue
            if self._optimizer.automatic is not None:
                self._optimizer.automatic.count(host.grad)
            groups = slots[0].variable.group_of_replica
            self._add_to_sum(slots[0 if groups is None else groups[replica]], host.grad)
            host.grad = None
        self._added += 1

    def _add_to_sum(self, slot: Slot, gradient: torch.Tensor) -> None:
        total = self._sums.get(id(slot))
        if total is None:
            total = self._sums[id(slot)] = torch.zeros_like(gradient, dtype=self._accum_type)
        if self._running_mean:
            total.mul_(self._added / (self._added + 1)).add_(gradient.to(total.dtype), alpha=1 / (self._added + 1))
        else:
            total.add_(gradient)

    def reduced(self) -> Dict[int, torch.Tensor]:
        """The gradient of each slot, float32, by id of the slot."""
        found = {id(slot): host.grad for slot, host in self._direct if host.grad is not None}
        for _, host in self._direct:
            host.grad = None
        found.update({key: total.float() for key, total in self._sums.items()})
        divisor = self._scaling
        if self._mean and not self._running_mean:
            divisor *= self._count / self._accumulation if self._mean_of_loss else self._count
        elif self._running_mean:
            divisor *= self._num_processes
        with torch.no_grad():
            if self._num_processes > 1:
                for gradient in found.values():
                    torch.distributed.all_reduce(gradient)
            if divisor != 1.0:
                for gradient in found.values():
                    gradient.div_(divisor)
        if self._optimizer.automatic is not None:
            self._optimizer.automatic.updated(self._optimizer.hyper.loss_scaling)
        return found


def require_process_group(num_processes: int) -> None:
    """Raise Error if options name several processes that torch.distributed does not connect."""
    if num_processes == 1:
        return
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not connected or torch.distributed.get_world_size() != num_processes:
        raise compiler_error(
            f"options.Distributed names {num_processes} processes, which the simulator connects through "
            "torch.distributed: call torch.distributed.init_process_group() with that world size first."
        )
