"""Weights that a callback writes into the program's model, and a device that trains with its own copy.

Whoever writes reads first, and reading fetches the weights from the device. So what was fetched is remembered, by a checksum of
each tensor, and compared before the next step: what has changed is sent. Where nobody looks nothing is computed.
"""

from __future__ import annotations

import zlib
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import nn

# Of each parameter and buffer: which object it is, and what it holds.
_Contents = Dict[str, Tuple[int, int]]


class FetchedWeights:
    """What the executor last brought to the host of the module that it runs."""

    def __init__(self, executor: Any, module: nn.Module, model: nn.Module, when_fetched: Callable[[], None]) -> None:
        self._module = module
        self._fetched: _Contents = {}
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
        return [(tensor._version, tensor.data_ptr()) for tensor in self._apart.values()]

    def forget(self) -> None:
        """A step has run: the device has newer weights, and what was written before it is in them."""
        self._fetched = {}

    def written(self) -> List[str]:
        """Names of what was written since. Raises ValueError where another Parameter was put in the place of one."""
        if self._versions_apart() != self._versions:
            raise ValueError(
                "weights of the model were written, but its twin of optimum-graphcore's class trains on the device and would not "
                "see them. Use pipelining='generic', where what a callback writes is sent."
            )
        if not self._fetched:
            return []
        known, found = self._fetched, _contents(self._module)
        self._fetched = {}
        replaced = [name for name in found if name not in known or found[name][0] != known[name][0]]
        if replaced:
            raise ValueError(
                f"{replaced[0]} is another Parameter than the one that trains on the device. Write into it instead: with "
                "torch.no_grad(): parameter.copy_(values)."
            )
        return [name for name in found if found[name] != known[name]]


def _contents(module: nn.Module) -> _Contents:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (id(tensor), _checksum(tensor)) for name, tensor in tensors}


def _checksum(tensor: torch.Tensor) -> int:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy().data)
