"""The SDK's debug log of each operator's IPU and stage:

    Op encoder/layer1/Mul:0/1 mode(Pipelined), ipu(1), stage(1)

Written once, during compilation, to show where annotations take effect.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Dict, Iterator, List

import torch

from ipu_trainer.simulator.forward.blocks import ExecutedBlock
from ipu_trainer.simulator.logs import logger


class PlacementLog:
    """Names operators by their modules, and numbers those of one name."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._scope: List[str] = []
        self._seen: Dict[str, int] = {}

    def record(self, function_name: str, block: ExecutedBlock) -> None:
        """Log an operator that ran in the block."""
        operator = "".join(word.capitalize() for word in function_name.strip("_").split("_"))
        name = "/".join([*self._scope, operator])
        number = self._seen[name] = self._seen.get(name, -1) + 1
        place = f"phase({block.phase_id})" if self._mode == "Phased" else f"stage({block.stage_id})"
        logger.debug(
            "Op %s:0%s mode(%s), ipu(%d), %s", name, f"/{number}" if number else "", self._mode, block.ipu_id, place
        )

    @contextlib.contextmanager
    def tracking(self, model: torch.nn.Module) -> Iterator[None]:
        """Track the modules that the model is in, until the body ends."""
        handles: List[Any] = []
        for name, module in model.named_modules():
            if name:
                handles.append(
                    module.register_forward_pre_hook(functools.partial(self._enter, name.rpartition(".")[2]))
                )
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: torch.nn.Module, inputs: Any) -> None:
        self._scope.append(name)

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._scope.pop()
