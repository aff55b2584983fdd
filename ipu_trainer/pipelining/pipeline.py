"""A model prepared for a device, until undo(): its parts begin blocks, its large weights are split."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.pipelining.anatomy import PipeliningError, find_anatomy
from ipu_trainer.pipelining.large_weights import (
    Undo,
    merge_pieces,
    serialise_embedding,
    serialise_projection,
    split_module,
)
from ipu_trainer.pipelining.plan import Placement, check_settings, place, table

PIPELININGS = ("generic", "optimum", "none")


class Pipeline:
    """`module` is what an executor runs. See pipelined()."""

    def __init__(self, model: nn.Module, config: IPUConfig, poptorch: Any, annotates: bool = True) -> None:
        self.model = self.module = model
        self.config = config
        self.replaced: Dict[int, List[nn.Parameter]] = {}
        self._poptorch = poptorch
        self._undo: List[Undo] = []
        self._hooks: List[Any] = []
        self._split: List[str] = []
        self._annotated_for: Optional[bool] = None
        self.placements: Dict[bool, Tuple[Placement, ...]] = {}
        check_settings(model)
        if annotates:
            for inference in (False, True):
                used = config.for_inference() if inference else config
                if used.ipus_per_replica != 1:
                    self.placements[inference] = place(find_anatomy(model), used)
        try:
            self._rewrite()
        except PipeliningError:
            self.undo()
            raise

    def describe(self) -> str:
        """The parts on each IPU, as a table."""
        placements = self.placements.get(False)
        return "IPU 0  the whole model" if placements is None else table(placements)

    def annotate(self, for_inference: bool) -> None:
        """Let the parts begin their blocks, as training or inference places them. Needed before compiling."""
        if self._annotated_for is for_inference:
            return
        self._remove_annotations()
        placements = self.placements.get(for_inference, ())
        if placements:
            self._begin(self.model, "stem", 0)
        for placement in placements:
            self._begin(self.model.get_submodule(placement.name), placement.name, placement.ipu)
        if self.config.recompute_checkpoint_every_layer and not for_inference:
            self._hooks += [
                self.model.get_submodule(p.name).register_forward_hook(self._checkpoint)
                for p in placements
                if p.kind == "layer"
            ]
        self._annotated_for = for_inference

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """The plain model's: names and shapes as before pipelining."""
        state = dict(self.model.state_dict())
        for name in self._split:
            merge_pieces(state, name)
        return state

    @property
    def changes_names(self) -> bool:
        """Whether the names of the model's state_dict() differ while it is pipelined."""
        return bool(self._split)

    def undo(self) -> None:
        """Restore the model, with its newest weights."""
        self._remove_annotations()
        while self._undo:
            self._undo.pop()()
        self._split, self.replaced = [], {}

    def _begin(self, module: nn.Module, name: str, ipu: int) -> None:
        if type(module).__name__ in ("SplitProjection", "SplitEmbedding"):  # each piece begins a block
            return
        self._poptorch.BeginBlock(module, user_id=name, ipu_id=ipu)

    def _remove_annotations(self) -> None:
        if self._annotated_for is not None:
            self._poptorch.removeBlocks(self.model)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._annotated_for = [], None

    def _checkpoint(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return self._poptorch.recomputationCheckpoint(output)
        if isinstance(output, tuple):
            checkpoint = self._poptorch.recomputationCheckpoint
            return tuple(checkpoint(value) if isinstance(value, torch.Tensor) else value for value in output)
        return None

    def _rewrite(self) -> None:
        config = self.config
        for kind, getter in (("embedding", "get_input_embeddings"), ("projection", "get_output_embeddings")):
            factor = getattr(config, f"{kind}_serialization_factor")
            splits = getattr(config, f"serialized_{kind}_splits_per_ipu")
            if splits and getattr(config, f"inference_serialized_{kind}_splits_per_ipu") not in (None, splits):
                raise PipeliningError(
                    f"inference_serialized_{kind}_splits_per_ipu differs from serialized_{kind}_splits_per_ipu "
                    f"{list(splits)}: one model is spread in one way. Leave the first one out."
                )
            if not splits and factor in (None, 1):
                continue
            module = getattr(self.model, getter, lambda: None)()
            if module is None:
                raise PipeliningError(
                    f"{kind}_serialization_factor {factor} needs a model with {getter}(), and {type(self.model).__name__} "
                    f"has none. Use {kind}_serialization_factor=1."
                )
            if splits:
                name = next(n for n, m in self.model.named_modules() if m is module)
                undo, pieces = split_module(self.model, name, kind, splits, self._poptorch)
                self._split.append(name)
                self.replaced.update(pieces)
            elif kind == "projection":
                undo = serialise_projection(module, factor, self._poptorch)
            else:
                undo = serialise_embedding(module, factor)
            self._undo.append(undo)


def pipelined(model: nn.Module, config: IPUConfig, poptorch: Any, pipelining: str = "generic") -> Any:
    """Prepare the model for executors of the namespace `poptorch`.

    "generic" splits any Transformers model, "optimum" uses optimum-graphcore's class for it, "none" leaves blocks to the
    program. Returns a Pipeline. Raises PipeliningError for a model that cannot be split as the config says, with its
    parts, and ValueError for an unknown name.
    """
    if pipelining not in PIPELININGS:
        raise UserError(f"pipelining {pipelining!r} is not one of {', '.join(PIPELININGS)}.")
    if pipelining == "optimum":
        from ipu_trainer.pipelining.optimum import OptimumPipeline

        return OptimumPipeline(model, config, poptorch)
    return Pipeline(model, config, poptorch, annotates=pipelining == "generic")
