"""The cost of each pipeline stage for one micro-batch: FLOPs, parameters, activations saved for backward.

A StageMeter measures the first micro-batch that the engine runs, with callbacks at blocks, a dispatch mode that sees every
operator, and autograd's hooks for saved tensors. A stage is a sequence of blocks on one IPU: a head on the embedding's IPU is a
further stage there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from ipu_trainer.compat.torch_operators import TorchDispatchMode
from ipu_trainer.simulator.analysis.flops import device_bytes, flops_of
from ipu_trainer.simulator.arguments.nested_values import tensors_of
from ipu_trainer.simulator.forward.blocks import BlockObserver, ExecutedBlock
from ipu_trainer.simulator.state.device_weights import DeviceWeights

_NUM_LARGEST = 3


@dataclasses.dataclass
class StageCost:
    """One stage, for one micro-batch.

    input_bytes are those of tensors from other stages and from outside, saved_bytes those that autograd saves for backward
    without parameters, segment_bytes the most of these between two checkpoints, checkpoint_bytes those of tensors marked with
    recomputationCheckpoint. largest: (bytes, shape and type) of the largest saved tensors.
    """

    index: int
    ipu_id: int
    blocks: List[str] = dataclasses.field(default_factory=list)
    forward_flops: int = 0
    num_parameters: int = 0
    num_trained: int = 0
    parameter_bytes: int = 0
    buffer_bytes: int = 0
    input_bytes: int = 0
    saved_bytes: int = 0
    checkpoint_bytes: int = 0
    segment_bytes: int = 0
    largest: List[Tuple[int, str]] = dataclasses.field(default_factory=list)


class StageMeter(BlockObserver):
    """Measures the first micro-batch, and has no effect on later ones."""

    def __init__(self, weights: DeviceWeights, state_bytes: int = 0, accumulator_bytes: int = 0) -> None:
        """state_bytes and accumulator_bytes per parameter are the optimizer's, for reports."""
        self.state_bytes = state_bytes
        self.accumulator_bytes = accumulator_bytes
        self.stages: List[StageCost] = []
        self.finished = False
        self._in_backward = False
        self._variables = {
            variable.copies[0].untyped_storage().data_ptr(): (
                variable.copies[0],
                variable.is_parameter,
                variable.is_parameter and variable.host().requires_grad,
            )
            for variable in weights.variables
        }
        self._not_saved = {copy.untyped_storage().data_ptr() for v in weights.variables for copy in v.copies}
        self._placed: Set[int] = set()
        self._saved: Dict[Tuple[int, int], int] = {}  # (IPU, address) -> bytes counted there
        self._segment_bytes = 0  # saved since the last checkpoint
        self._stage_of: Dict[int, int] = {}  # address of a tensor -> the stage that holds it

    @contextlib.contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Around forward and backward of one micro-batch."""
        if self.finished:
            yield
            return
        self.stages = []
        with _OperatorCounter(self), torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield
        self.finished = True
        for address in self._variables:
            if address not in self._placed and self.stages:
                self._place(self.stages[0], address)

    def enter_block(self, block: ExecutedBlock) -> None:
        if self.finished:
            return
        if not self.stages or self.stages[-1].ipu_id != block.ipu_id:
            if len(self.stages) == 1:
                first = self.stages[0]
                if not (first.forward_flops or first.num_parameters or first.saved_bytes):
                    self.stages.pop()  # nothing ran before the first annotation
            self.stages.append(StageCost(len(self.stages), block.ipu_id))
            self._segment_bytes = 0
        if block.user_id is not None:
            self.stages[-1].blocks.append(str(block.user_id))

    def recomputation_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        if not self.finished and self.stages:
            self.stages[-1].checkpoint_bytes += sum(device_bytes(tensor) for tensor in tensors)
            self._segment_bytes = 0

    def loss_found(self, loss: torch.Tensor) -> None:
        self._in_backward = True

    def count(self, function: Any, args: Sequence[Any], result: Any) -> None:
        """Count an operator of forward."""
        if not self.stages or self._in_backward:
            return
        stage = self.stages[-1]
        stage.forward_flops += flops_of(function, args, result)
        for argument in tensors_of(args):
            address = argument.untyped_storage().data_ptr()
            if address in self._variables and address not in self._placed:
                self._place(stage, address)
            elif address not in self._not_saved and self._stage_of.get(address, -1) != stage.index:
                stage.input_bytes += device_bytes(argument)
                self._stage_of[address] = stage.index  # received once
        for tensor in tensors_of(result):
            self._stage_of[tensor.untyped_storage().data_ptr()] = stage.index

    def _place(self, stage: StageCost, address: int) -> None:
        self._placed.add(address)
        tensor, is_parameter, is_trained = self._variables[address]
        if not is_parameter:
            stage.buffer_bytes += device_bytes(tensor)
            return
        stage.num_parameters += tensor.numel()
        stage.num_trained += tensor.numel() if is_trained else 0
        stage.parameter_bytes += device_bytes(tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # else an operator that saves its result would stay alive
        if not self.stages or tensor.untyped_storage().data_ptr() in self._not_saved:
            return tensor
        stage = self.stages[-1]
        size, key = device_bytes(tensor), (stage.ipu_id, tensor.data_ptr())
        new = size - self._saved.get(key, 0)  # views of the same memory count once
        if new > 0:
            self._saved[key] = size
            stage.saved_bytes += new
            self._segment_bytes += new
            stage.segment_bytes = max(stage.segment_bytes, self._segment_bytes)
            shape = "x".join(str(n) for n in tensor.shape) or "scalar"
            stage.largest.append((size, f"{shape} {str(tensor.dtype).split('.')[1]}"))
            stage.largest = sorted(stage.largest, reverse=True)[:_NUM_LARGEST]
        return tensor


class _OperatorCounter(TorchDispatchMode):
    def __init__(self, meter: StageMeter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._meter.count(func, args, result)
        return result
