"""What each pipeline stage of a model costs for one micro-batch: FLOPs, parameters, activations kept for backward.

Measured, not estimated: a StageMeter watches the first micro-batch that the engine runs, through hooks at block
borders, a dispatch mode that sees every operator, and autograd's own hooks for what it saves. A stage is a run of
blocks on one IPU, so that a head that goes back to the embedding's IPU is a stage of its own there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from ipu_trainer.compat.torch_operators import TorchDispatchMode
from ipu_trainer.simulator.analysis.flops import device_bytes, flops_of
from ipu_trainer.simulator.forward.blocks import BlockObserver, ExecutedBlock
from ipu_trainer.simulator.state.device_weights import DeviceWeights

_NUM_LARGEST = 3


@dataclasses.dataclass
class StageCost:
    """One stage, for one micro-batch.

    input_bytes is what comes from other stages and from outside, saved_bytes what autograd keeps for backward without
    parameters, segment_bytes the most of that between two checkpoints, checkpoint_bytes what the model marked with
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
    """Measures the first micro-batch; later ones run as if it were not there."""

    def __init__(self, weights: DeviceWeights, state_bytes: int = 0, accumulator_bytes: int = 0) -> None:
        """state_bytes and accumulator_bytes per parameter are the optimizer's, kept for reports."""
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
        self._made_by: Dict[int, int] = {}  # address of a tensor -> the stage that has it

    @contextlib.contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Around forward and backward of one micro-batch."""
        if self.finished:
            yield
            return
        self.stages = []
        with _Counter(self), torch.autograd.graph.saved_tensors_hooks(self._pack, _same):
            yield
        self.finished = True
        self._place_the_rest()

    def enter_block(self, block: ExecutedBlock) -> None:
        if self.finished:
            return
        if not self.stages or self.stages[-1].ipu_id != block.ipu_id:
            if len(self.stages) == 1 and not self._has_work(self.stages[0]):
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

    @staticmethod
    def _has_work(stage: StageCost) -> bool:
        return bool(stage.forward_flops or stage.num_parameters or stage.saved_bytes)

    def count(self, function: Any, args: Sequence[Any], result: Any) -> None:
        """An operator ran. Backward's are not counted."""
        if not self.stages or self._in_backward:
            return
        stage = self.stages[-1]
        stage.forward_flops += flops_of(function, args, result)
        for argument in _tensors(args):
            address = argument.untyped_storage().data_ptr()
            if address in self._variables and address not in self._placed:
                self._place(stage, address)
            elif address not in self._not_saved and self._made_by.get(address, -1) != stage.index:
                stage.input_bytes += device_bytes(argument)
                self._made_by[address] = stage.index  # it has arrived, and is here from now on
        for tensor in _tensors(result if isinstance(result, (tuple, list)) else (result,)):
            self._made_by[tensor.untyped_storage().data_ptr()] = stage.index

    def _place(self, stage: StageCost, address: int) -> None:
        self._placed.add(address)
        tensor, is_parameter, is_trained = self._variables[address]
        if not is_parameter:
            stage.buffer_bytes += device_bytes(tensor)
            return
        stage.num_parameters += tensor.numel()
        stage.num_trained += tensor.numel() if is_trained else 0
        stage.parameter_bytes += device_bytes(tensor)

    def _place_the_rest(self) -> None:
        for address in self._variables:
            if address not in self._placed and self.stages:
                self._place(self.stages[0], address)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # else an operator that saves its own result would keep itself alive
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


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (item for item in value if isinstance(item, torch.Tensor))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Counter(TorchDispatchMode):
    def __init__(self, meter: StageMeter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._meter.count(func, args, result)
        return result
