"""Tensors of the device that a program asks for by name: options.anchorTensor() and executor.getAnchoredTensor().

PopART has a name for every tensor of its graph. Here only those exist that a program can know without seeing the
graph: weights and buffers, their gradients (Gradient___<weight>, reduced, as the update uses them), the weights after
the update (UpdatedVar___<weight>) and the loss scale (finalLossScale). There is one value for each weight update, or
for each device iteration of inference; the output mode chooses among them.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch

from ipu_trainer.simulator.enums import OutputMode
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.execution.outputs import leave_device
from ipu_trainer.simulator.optim.weight_update import WeightUpdate
from ipu_trainer.simulator.state.device_weights import DeviceWeights

GRADIENT, UPDATED, LOSS_SCALE = "Gradient___", "UpdatedVar___", "finalLossScale"


def tensor_names(weights: DeviceWeights, optimizer: Optional[WeightUpdate], num_inputs: int) -> List[str]:
    """Every name that is known: inputs, weights and buffers, and in training what an update has."""
    names = [f"input/{i}" if i else "input" for i in range(num_inputs)]
    names += [variable.name for variable in weights.variables]
    if optimizer is not None:
        trained = [slot.variable.name for slot in optimizer.slots]
        names += ["loss", LOSS_SCALE, *(GRADIENT + name for name in trained), *(UPDATED + name for name in trained)]
        names += list(optimizer.read()["ipu_param"])
    return names


class Anchors:
    """The anchored tensors of one executor."""

    def __init__(
        self, wanted: Dict[str, Sequence[Any]], weights: DeviceWeights, optimizer: Optional[WeightUpdate]
    ) -> None:
        """`wanted` maps short names to [name, ignored, output mode, period].

        Raises Error for a name that the simulator has no tensor for.
        """
        self._wanted = {short: (entry[0], OutputMode(entry[2]), int(entry[3])) for short, entry in wanted.items()}
        self._variables = {name: variable for variable in weights.variables for name in variable.names}
        self._optimizer = optimizer
        trained = () if optimizer is None else [name for s in optimizer.slots for name in s.variable.names]
        known = [*self._variables, *(GRADIENT + n for n in trained), *(UPDATED + n for n in trained)]
        known += [LOSS_SCALE] if optimizer is not None else []
        for short, (name, _, _) in self._wanted.items():
            if name not in known:
                raise compiler_error(
                    f"anchorTensor({short!r}, {name!r}): the simulator has no graph of PopART's, and no tensor of that "
                    f"name. It knows {', '.join(known)}. Return other tensors from forward."
                )
        self._collected: Dict[str, List[torch.Tensor]] = {}
        self.values: Dict[str, torch.Tensor] = {}

    def collect(self, gradients: Optional[Dict[int, torch.Tensor]]) -> None:
        """Note the values after a weight update (or, with None, after a device iteration of inference)."""
        for short, (name, _, _) in self._wanted.items():
            self._collected.setdefault(short, []).append(leave_device(self._value(name, gradients)))

    def _value(self, name: str, gradients: Optional[Dict[int, torch.Tensor]]) -> torch.Tensor:
        if name == LOSS_SCALE and self._optimizer is not None:
            return torch.tensor(self._optimizer.last_loss_scaling)
        if name.startswith(GRADIENT) and self._optimizer is not None and gradients is not None:
            variable = self._variables[name[len(GRADIENT) :]]
            slot = next(slot for slot in self._optimizer.slots if slot.variable is variable)
            gradient = gradients.get(id(slot))
            return torch.zeros_like(slot.stored) if gradient is None else gradient
        return self._variables[name[len(UPDATED) :] if name.startswith(UPDATED) else name].copies[0]

    def finish(self) -> None:
        """The host step is over: choose by mode. All and EveryN stack along a new first dimension if several."""
        for short, (_, mode, period) in self._wanted.items():
            found = self._collected.get(short, [])
            if mode == OutputMode.Sum:
                self.values[short] = torch.stack(found).sum(0)
                continue
            chosen = found[-1:] if mode == OutputMode.Final else found
            chosen = found[period - 1 :: period] if mode == OutputMode.EveryN else chosen
            self.values[short] = chosen[0] if len(chosen) == 1 else torch.stack(chosen)
        self._collected = {}
