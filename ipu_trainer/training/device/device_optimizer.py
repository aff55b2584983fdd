"""The optimizer of a run on a device: Trainer and schedulers see a torch optimizer, the device makes the updates."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from transformers.utils import logging

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.compat.torch_modules import note_step
from ipu_trainer.errors import UserError

logger = logging.get_logger(__name__)

# Class name of a host's optimizer -> poptorch's, and the settings that both have.
COUNTERPARTS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "AdamW": ("AdamW", ("betas", "eps", "weight_decay")),
    "Adam": ("Adam", ("betas", "eps", "weight_decay")),
    "SGD": ("SGD", ("momentum", "dampening", "weight_decay", "nesterov")),
    "RMSprop": ("RMSprop", ("alpha", "eps", "momentum", "centered", "weight_decay")),
}
_DEVICE_LOSES_CLIPPING = ("RMSprop", "LAMB")
# Flags of torch's optimizers that change the update, which no device optimizer has.
_UNKNOWN_TO_THE_DEVICE = ("amsgrad", "maximize")


class DeviceOptimizer(torch.optim.Optimizer):
    """Groups and learning rates are `host`'s, which schedulers go on changing; step() and zero_grad() do nothing.

    Its state is the device's. Raises UserError for an optimizer that no device has, or that cannot clip there.
    """

    # accelerate leaves it as it is, and asks whether a step was skipped.
    _is_accelerate_prepared = True
    step_was_skipped = False

    def __init__(
        self, host: torch.optim.Optimizer, run: Any, max_grad_norm: float, loss_scaling: float, accumulates_half: bool
    ) -> None:
        self.host = host
        self.run = run
        self.device: Any = None
        self.defaults = host.defaults
        self.state: Any = {}
        self._saved: Optional[Dict[str, Any]] = None
        self._max_grad_norm = max_grad_norm
        self._loss_scaling = loss_scaling
        self._accumulates_half = accumulates_half
        self._pushed: Any = None
        kinds = tuple(getattr(run.backend.poptorch.optim, name) for name in (*COUNTERPARTS, "LAMB"))
        self._brought = host if isinstance(host, kinds) else None
        self._kind = type(host).__name__ if self._brought is not None else counterpart(host)
        if self._brought is None and max_grad_norm > 0 and self._kind in _DEVICE_LOSES_CLIPPING:
            raise UserError(
                f"max_grad_norm {max_grad_norm} cannot be honoured: {self._kind} does not clip gradients on a device. Use "
                "--max_grad_norm 0, or AdamW, Adam or SGD."
            )

    def __getstate__(self) -> Dict[str, Any]:
        """Of an optimizer whose run was released; schedulers put a `step` of their own on the object."""
        return {name: value for name, value in vars(self).items() if name != "step"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def param_groups(self) -> List[Dict[str, Any]]:  # type: ignore[override]  # the host's own list
        return self.host.param_groups

    @param_groups.setter
    def param_groups(self, groups: List[Dict[str, Any]]) -> None:
        self.host.param_groups = groups

    @property
    def is_started(self) -> bool:
        return self.device is not None

    def start(self, replaced: Mapping[int, List[torch.nn.Parameter]]) -> None:
        """Make the device's optimizer. replaced: the parameters that replace a weight, by its id()."""
        self.device = self._make(replaced) if self._brought is None else self._brought
        self._pushed = self._numbers()
        if self._saved is not None and self._saved.get("ipu_state") is not None:
            self.device.load_state_dict(self._saved)
            self._pushed = None  # the saved state holds the learning rates of its time
        self._saved = None

    def stop(self) -> None:
        """Keep the state for the next start."""
        if self.device is not None:
            self._saved = self.device.state_dict()
            self.device = None

    def push(self) -> bool:
        """Bring changed learning rates (and other numbers) to the device's optimizer; whether there were any."""
        numbers = self._numbers()
        if numbers == self._pushed:
            return False
        if self.device is not self.host:
            for group, values in zip(self.device.param_groups, numbers):
                group.update(values)
        self._pushed = numbers
        return True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """The device has made the update already. Schedulers that were made with `host` want to see it step."""
        note_step(self.host)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients are on the device alone."""

    def state_dict(self) -> Dict[str, Any]:
        """The device's state and generators, and the groups' numbers: what resuming needs."""
        state = self._saved if self.device is None else self.device.state_dict()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.host.param_groups]
        return {"device": state, "rng_state": self.run.rng_state, "param_groups": groups}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take up such a state. Raises UserError for one that was written by a run on the host."""
        if "device" not in state_dict:
            raise UserError(
                "this checkpoint's optimizer state was written on the host, and a device keeps it in another form. "
                "Resume with --backend host, or start from its weights: --model CHECKPOINT."
            )
        if len(state_dict["param_groups"]) != len(self.host.param_groups):
            raise UserError(
                f"this checkpoint has {len(state_dict['param_groups'])} parameter groups and the optimizer "
                f"{len(self.host.param_groups)}. Resume with the settings that it was trained with."
            )
        for group, saved in zip(self.host.param_groups, state_dict["param_groups"]):
            group.update(saved)
        state = state_dict["device"]
        if state is not None and state.get("ipu_state") is not None:
            if self.device is None:
                self._saved = state
            else:
                self.device.load_state_dict(state)
        self._pushed = None
        self.run.rng_state = state_dict["rng_state"]

    def _make(self, replaced: Mapping[int, List[torch.nn.Parameter]]) -> Any:
        poptorch = self.run.backend.poptorch
        groups = []
        for group, numbers in zip(self.host.param_groups, self._numbers()):
            parameters: List[Any] = []
            for parameter in group["params"]:
                parameters += replaced.get(id(parameter), [parameter])
            groups.append({"params": parameters, **numbers})
        extra: Dict[str, Any] = {"loss_scaling": self._loss_scaling}
        if self._accumulates_half:
            extra["accum_type"] = torch.float16
        if self._kind not in _DEVICE_LOSES_CLIPPING:
            extra["max_grad_norm"] = self._max_grad_norm if self._max_grad_norm > 0 else math.inf
        if self._kind == "SGD":
            extra["use_combined_accum"] = False
        first = {k: v for k, v in self._numbers()[0].items() if k != "initial_lr"}
        return getattr(poptorch.optim, self._kind)(groups, **first, **extra)

    def _numbers(self) -> List[Dict[str, Any]]:
        if self._brought is not None:
            return [{k: v for k, v in group.items() if k != "params"} for group in self.host.param_groups]
        names = ("lr", *COUNTERPARTS[self._kind][1])
        groups = [{name: group[name] for name in names if name in group} for group in self.host.param_groups]
        return [{k: float(v) if isinstance(v, torch.Tensor) else v for k, v in group.items()} for group in groups]


def counterpart(optimizer: torch.optim.Optimizer) -> str:
    """The name in poptorch.optim of what makes the same updates. Raises UserError if there is none."""
    base = next((cls.__name__ for cls in type(optimizer).__mro__ if cls.__name__ in COUNTERPARTS), None)
    if base is None or type(optimizer).__name__ not in COUNTERPARTS:
        raise UserError(
            f"optimizer {type(optimizer).__name__} has no counterpart on a device, whose optimizers are "
            f"{', '.join(COUNTERPARTS)} and LAMB. Use --optim adamw_torch or --optim sgd, or pass one of poptorch.optim in "
            "optimizers=."
        )
    if compat.is_deprecated_adamw(optimizer):
        logger.warning(
            "optim adamw_hf decays weights after the update, the device's AdamW before it: weights differ by about "
            "learning rate squared x weight decay. --optim adamw_torch is the same on host and device."
        )
    for name in _UNKNOWN_TO_THE_DEVICE:
        if any(group.get(name) for group in optimizer.param_groups):
            raise UserError(f"{name}=True of {base} has no counterpart on a device. Leave it out.")
    return base
