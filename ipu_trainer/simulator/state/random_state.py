"""The device's random generators, separate from the program's.

A run on the device must not advance the program's generator, nor depend on it. The device's generator is torch's, seeded with
the options' seed (else with the program's), so that a seeded run draws the numbers that plain PyTorch draws after the same
torch.manual_seed().
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Optional

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.logs import logger


class DeviceRandom:
    """The generators of one executor's device."""

    def __init__(self, seed: Optional[int], device: torch.device) -> None:
        self.seed = torch.initial_seed() if seed is None else seed
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._has_run = False
        self._cpu_state = torch.Generator().manual_seed(self.seed).get_state()
        self._cuda_state: Optional[torch.Tensor] = None
        if self._on_cuda:
            self._cuda_state = torch.Generator(device).manual_seed(self.seed).get_state()
        # Rounding has a separate generator, so that enabling it does not change dropout.
        self.rounding = torch.Generator(device).manual_seed(self.seed ^ 0x5EED)

    @contextlib.contextmanager
    def running(self, keep: bool = True) -> Iterator[None]:
        """Let torch draw from the device's generator, then from the program's again. keep=False discards the draws."""
        host_cpu = torch.get_rng_state()
        host_cuda = torch.cuda.get_rng_state(self._device) if self._on_cuda else None
        torch.set_rng_state(self._cpu_state)
        if self._cuda_state is not None:
            torch.cuda.set_rng_state(self._cuda_state, self._device)
        try:
            yield
        finally:
            if keep:
                self._has_run = True
                self._cpu_state = torch.get_rng_state()
                if self._on_cuda:
                    self._cuda_state = torch.cuda.get_rng_state(self._device)
            torch.set_rng_state(host_cpu)
            if host_cuda is not None:
                torch.cuda.set_rng_state(host_cuda, self._device)

    def read(self) -> List[int]:
        """The seed; after the first run also the state of every generator, as bytes with their number in front."""
        if not self._has_run:
            return [self.seed]
        logger.debug("Reading random seed %d", self.seed)
        logger.debug("Reading RNG state")
        out = [self.seed]
        for state in self._states():
            out += [state.numel(), *state.tolist()]
        return out

    def write(self, state: List[int]) -> None:
        """Restore what read() returned. A list of the seed alone restarts the generators."""
        logger.debug("Setting random seed to %d", state[0])
        self.__init__(state[0], self._device)  # type: ignore[misc]  # the same object, restarted
        rest, states = state[1:], []
        while rest:
            states.append(torch.tensor(rest[1 : 1 + rest[0]], dtype=torch.uint8))
            rest = rest[1 + rest[0] :]
        if not states:
            return
        expected = [s.numel() for s in self._states()]
        if [s.numel() for s in states] != expected:
            raise UserError(
                f"rng_state has generators of {[s.numel() for s in states]} bytes, this device has {expected}: it was "
                "read on another kind of device. Pass [seed] to restart them."
            )
        logger.debug("Setting RNG state")
        self._has_run = True
        self._cpu_state = states[0]
        self.rounding.set_state(states[1])
        if self._on_cuda:
            self._cuda_state = states[2]

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "rounding": self.rounding.get_state()}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.rounding = torch.Generator(self._device)
        self.rounding.set_state(state["rounding"])

    def _states(self) -> List[torch.Tensor]:
        states = [self._cpu_state, self.rounding.get_state()]
        return states if self._cuda_state is None else [*states, self._cuda_state]
