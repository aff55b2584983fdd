"""Finds the weights that a callback changed in the program's model, so that they are sent to the device's copy.

Whoever writes reads first, and reading fetches the weights from the device. So what was fetched is remembered, by a checksum of
each tensor, and compared before the next step: what has changed is sent. If no callback reads weights,
nothing is computed.
"""

from __future__ import annotations

import zlib
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import nn

from ipu_trainer.compat.torch_operators import num_writes
from ipu_trainer.errors import UserError


class FetchedWeights:
    """What the executor last brought to the host of the module that it runs."""

    def __init__(self, executor: Any, module: nn.Module, model: nn.Module, when_fetched: Callable[[], None]) -> None:
        self._module = module
        self._held = _held(module)
        self._fetched: Dict[str, int] = {}
        in_module = {id(tensor) for tensor in module.parameters()}
        self._apart = {name: tensor for name, tensor in model.named_parameters() if id(tensor) not in in_module}
        self._versions = self._versions_apart()
        fetch = executor.copyWeightsToHost

        def fetch_and_remember() -> None:
            fetch()
            when_fetched()
            self._fetched = _contents(module)

        executor.copyWeightsToHost = fetch_and_remember

    def _versions_apart(self) -> List[Tuple[int, int]]:
        """Of the weights that a twin trains instead, how often they were written."""
        return [(num_writes(tensor), tensor.data_ptr()) for tensor in self._apart.values()]

    def forget(self) -> None:
        """A step has run: the device has newer weights, and what was written before it is in them."""
        self._fetched = {}

    def written(self) -> List[str]:
        """Names of what was written since. Raises UserError where another tensor was put in the place of one."""
        if self._versions_apart() != self._versions:
            raise UserError(
                "weights of the model were written, but its twin of optimum-graphcore's class trains on the device and would not "
                "see them. Use pipelining='generic', where what a callback writes is sent."
            )
        replaced = [name for name, held in _held(self._module).items() if self._held.get(name) != held]
        if replaced:
            raise UserError(
                f"{replaced[0]} is another tensor than the one that the device has. Write into it instead: with torch.no_grad(): "
                "tensor.copy_(values)."
            )
        if not self._fetched:
            return []
        known, found = self._fetched, _contents(self._module)
        self._fetched = {}
        return [name for name in found if found[name] != known.get(name)]


def _held(module: nn.Module) -> Dict[str, int]:
    """Which object each parameter and buffer is, without reading them, which would fetch the weights."""
    tensors: Dict[str, int] = {}
    for prefix, part in module.named_modules():
        for kind in ("_parameters", "_buffers"):
            tensors.update({f"{prefix}.{name}".lstrip("."): id(held) for name, held in vars(part)[kind].items()})
    return tensors


def _contents(module: nn.Module) -> Dict[str, int]:
    """A checksum of each parameter and buffer."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: _checksum(tensor) for name, tensor in tensors}


def _checksum(tensor: torch.Tensor) -> int:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy().data)
