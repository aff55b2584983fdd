"""Which block the model is in: followed while a micro-batch runs, recorded while it is compiled.

Blocks change no value. They decide stages, and stages decide whether a pipeline can run at all, how long it takes and
what it keeps in memory. Whoever wants to measure that registers a BlockObserver with the executor; without observers
a compiled model follows no blocks, and an annotation costs one attribute read.
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
    """Told about every block of every micro-batch of a model. Override what is needed."""

    def micro_batch(self) -> ContextManager[None]:
        """A context that the engine enters around forward and backward of every micro-batch."""
        return contextlib.nullcontext()

    def enter_block(self, block: ExecutedBlock) -> None:
        """The model has entered the block (and left the one before)."""

    def leave_block(self, block: ExecutedBlock) -> None:
        """The model has left the block: because another begins, or because forward returned."""

    def recomputation_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """The model asked to keep these tensors so that what follows can be recomputed from them."""

    def loss_found(self, loss: torch.Tensor) -> None:
        """Forward has returned, and this is the tensor that backward will start from."""

    def backward_done(self) -> None:
        """Backward of the micro-batch has finished."""


class BlockTracker:
    """Follows the annotations of one forward and tells the observers."""

    def __init__(self, resolver: StageResolver, observers: Sequence[BlockObserver] = ()) -> None:
        self.blocks: List[ExecutedBlock] = []
        self.active: Optional[ExecutedBlock] = None
        self.ended = False
        self._resolver = resolver
        self._observers = observers
        self._auto_ids: Dict[int, str] = {}

    def start(self) -> None:
        """Forward begins, in the region before the first annotation."""
        self._resolver.resetAutoId()
        self._enter(ExecutedBlock(0, None, 0, 0, 0))

    def begin(self, user_id: Optional[Any], ipu_id: Optional[int], owner: Any = None) -> None:
        """An annotation was reached. `owner` is what carries it: one without an id keeps the number it got first."""
        if not user_id:
            if owner is not None and id(owner) in self._auto_ids:
                user_id = self._auto_ids[id(owner)]
            else:
                user_id = self._resolver.nextAutoId()
                if owner is not None:
                    self._auto_ids[id(owner)] = user_id
        stage, ipu = self._resolver.resolve(user_id, ipu_id)
        module = owner if isinstance(owner, torch.nn.Module) else None
        self.ended = False
        self._enter(ExecutedBlock(len(self.blocks), user_id, ipu, stage._stage_id, max(stage._phase_id, 0), module))

    def end(self) -> None:
        """A `with` block was left: until the next annotation, nothing may be computed."""
        self.ended = True

    def checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """Recomputation starts from these tensors."""
        for observer in self._observers:
            observer.recomputation_checkpoint(tensors)

    def reset_auto_ids(self) -> None:
        """poptorch.Block.useAutoId()."""
        self._resolver.resetAutoId()

    def finish(self) -> None:
        """Forward has returned."""
        self._leave()

    def _enter(self, block: ExecutedBlock) -> None:
        self._leave()
        self.blocks.append(block)
        self.active = block
        for observer in self._observers:
            observer.enter_block(block)

    def _leave(self) -> None:
        if self.active is not None:
            for observer in self._observers:
                observer.leave_block(self.active)
        self.active = None
