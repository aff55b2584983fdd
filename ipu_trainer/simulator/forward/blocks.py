"""Blocks of a model, recorded during compilation and reported to observers while micro-batches run.

Blocks change no value. They determine stages, and stages determine whether a pipeline can run, its duration and its memory.
A BlockObserver, registered with the executor, measures them; without observers a compiled model tracks no blocks, and an
annotation costs one attribute read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ContextManager, Dict, List, Optional, Sequence

import torch

from ipu_trainer.simulator.options.strategies import StageResolver


@dataclasses.dataclass(frozen=True)
class ExecutedBlock:
    """One annotated region of the model, in the order of execution.

    index counts the regions of one forward. The region before the first annotation has user_id None and is on IPU 0,
    in stage 0 and phase 0. `module` is the module that the annotation was put on, or None for a `with` block, a
    function or Block.start().
    """

    index: int
    user_id: Optional[str]
    ipu_id: int
    stage_id: int
    phase_id: int
    module: Optional[torch.nn.Module] = dataclasses.field(default=None, compare=False, repr=False)


class BlockObserver:
    """Callbacks for every block of every micro-batch of a model. Override those that are needed."""

    def micro_batch(self) -> ContextManager[None]:
        """A context that the engine enters around forward and backward of every micro-batch."""
        return contextlib.nullcontext()

    def enter_block(self, block: ExecutedBlock) -> None:
        """The model has entered the block (and left the one before)."""

    def leave_block(self, block: ExecutedBlock) -> None:
        """The model has left the block: because another begins, or because forward returned."""

    def recomputation_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """The model marked these tensors to be stashed, so that what follows can be recomputed from them."""

    def loss_found(self, loss: torch.Tensor) -> None:
        """Forward has returned, and this is the tensor that backward will start from."""

    def backward_done(self) -> None:
        """Backward of the micro-batch has finished."""


class BlockTracker:
    """Tracks the annotations of one forward and calls the observers."""

    def __init__(self, resolver: StageResolver, observers: Sequence[BlockObserver] = ()) -> None:
        self.blocks: List[ExecutedBlock] = []
        self.active: Optional[ExecutedBlock] = None
        self.ended = False  # a `with` block was left: until the next annotation, nothing may be computed
        self.resolver = resolver
        self._observers = observers
        self._auto_ids: Dict[int, str] = {}

    def start(self) -> None:
        """Forward begins, in the region before the first annotation."""
        self.resolver.resetAutoId()
        self._enter(ExecutedBlock(0, None, 0, 0, 0))

    def begin(self, user_id: Optional[Any], ipu_id: Optional[int], owner: Any = None) -> None:
        """An annotation was reached. `owner` is what carries it: one without an id keeps the number it got first."""
        if not user_id:
            if owner is not None and id(owner) in self._auto_ids:
                user_id = self._auto_ids[id(owner)]
            else:
                user_id = self.resolver.nextAutoId()
                if owner is not None:
                    self._auto_ids[id(owner)] = user_id
        stage, ipu = self.resolver.resolve(user_id, ipu_id)
        module = owner if isinstance(owner, torch.nn.Module) else None
        self.ended = False
        self._enter(ExecutedBlock(len(self.blocks), user_id, ipu, stage._stage_id, max(stage._phase_id, 0), module))

    def checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """Recomputation starts from these tensors."""
        for observer in self._observers:
            observer.recomputation_checkpoint(tensors)

    def _enter(self, block: ExecutedBlock) -> None:
        self.finish()
        self.blocks.append(block)
        self.active = block
        for observer in self._observers:
            observer.enter_block(block)

    def finish(self) -> None:
        """The active block ends: forward has returned, or another begins."""
        if self.active is not None:
            for observer in self._observers:
                observer.leave_block(self.active)
        self.active = None
