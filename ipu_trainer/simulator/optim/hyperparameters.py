"""The hyper-parameters that the device takes from an optimizer, read once at setOptimizer().

Later changes of the program's optimizer have no effect until the next setOptimizer(). Each number is variable, or a constant of
the compiled graph that cannot change later: poptorch's `variable_attrs` decides which; for torch's optimizers a number is
constant if it equals the device's default.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Dict, List, Optional, Tuple, Type

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.optim import optimizers as optim

# The device's defaults, by which torch's optimizers are judged. lr is always variable.
_DEFAULTS: Dict[str, Any] = {
    "momentum": 0.0,
    "velocity_scaling": 1.0,
    "dampening": 0.0,
    "eps": 1e-8,
    "max_weight_norm": 65500.0,
}
_BYTES = {torch.float16: 2, torch.float32: 4}
_ALWAYS_CONSTANT = ("alpha", "nesterov", "betas")


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """One snapshot of an optimizer.

    kind: "SGD1" (combined accumulator), "SGD2", "ADAM", "ADAMW", "ADAMW_NO_BIAS", "RMSPROP", "RMSPROP_CENTERED",
    "LAMB" or "LAMB_NO_BIAS". groups and defaults map attribute to number; params lists each group's host tensors.
    """

    kind: str
    defaults: Dict[str, Any]
    groups: Tuple[Dict[str, Any], ...]
    constant: Tuple[str, ...]
    loss_scaling: float
    accum_type: torch.dtype
    first_order_type: torch.dtype
    second_order_type: torch.dtype
    max_grad_norm: float
    use_tf_variant: bool
    params: Tuple[Tuple[torch.Tensor, ...], ...] = dataclasses.field(compare=False, repr=False)

    @property
    def accumulator_bytes_per_parameter(self) -> int:
        """Bytes of the sum of gradients for each element of a parameter."""
        return _BYTES[self.accum_type]

    @property
    def state_bytes_per_parameter(self) -> int:
        """Bytes of optimizer state for each element of a parameter."""
        first, second = _BYTES[self.first_order_type], _BYTES[self.second_order_type]
        has_momentum = any(group.get("momentum") for group in self.groups) or "momentum" not in self.constant
        if self.kind.startswith("SGD"):
            return first if has_momentum else 0
        if self.kind.startswith("RMSPROP"):
            centered = "CENTERED" in self.kind
            return first + (second if has_momentum else 0) + (first if centered else 0)
        return first + second

    def describe(self) -> List[str]:
        """One line for the defaults and one for each group: every number, and whether it is constant."""
        types = {
            "accumType": self.accum_type,
            "firstOrderMomentumAccumType": self.first_order_type,
            "secondOrderMomentumAccumType": self.second_order_type,
        }
        shared = [f"lossScaling={self.loss_scaling:g}{self._constancy('loss_scaling')}"]
        shared += [f"{name}={str(dtype).split('.')[1]}" for name, dtype in types.items()]
        lines = [f"graph optimizer with {self.kind}, " + ", ".join(self._numbers(self.defaults, "default") + shared)]
        for index, group in enumerate(self.groups):
            numbers = ", ".join([*self._numbers(group, ""), f"tensors={len(self.params[index])}"])
            lines.append(f"Updating group {index} optimizer with {self.kind}, {numbers}")
        return lines

    def _numbers(self, values: Dict[str, Any], prefix: str) -> List[str]:
        named: Dict[str, Any] = {}
        if self.kind == "SGD2":  # the velocity is separate from the accumulator, and scaled as the loss is
            values = {**values, "velocity_scaling": self.loss_scaling}
        for name, value in values.items():
            if name == "betas":
                named.update(betas=None, beta1=value[0], beta2=value[1])
            elif name != "amsgrad":
                named["learning_rate" if name == "lr" else name] = value
        origin = {"learning_rate": "lr", "beta1": "betas", "beta2": "betas"}
        shown = []
        for name, value in named.items():
            if value is not None:
                words = (f"{prefix}_{name}" if prefix else name).split("_")
                camel = words[0] + "".join(word.capitalize() for word in words[1:])
                shown.append(f"{camel}={float(value):g}{self._constancy(origin.get(name, name))}")
        return shown

    def _constancy(self, name: str) -> str:
        name = "loss_scaling" if name == "velocity_scaling" and self.kind == "SGD2" else name
        return " (const)" if name in self.constant else ""

    def changed_constants(self, before: HyperParameters) -> List[str]:
        """Constant attributes whose value differs from the earlier snapshot's."""
        ignored = ("velocity_scaling",) if self.kind == "SGD2" else ()  # the device takes the loss scaling for it
        changed = [
            name
            for name in before.constant
            if name not in ignored
            for old, new in zip(before.groups, self.groups)
            if name in old and name in new and old[name] != new[name]
        ]
        if "loss_scaling" in before.constant and self.loss_scaling != before.loss_scaling:
            changed.append("loss_scaling")
        return sorted(set(changed))


class AttributeTracker:
    """Warns once about attributes that the first optimizer did not have: the device ignores them."""

    def __init__(self, relaxed: bool) -> None:
        self._log = logger.debug if relaxed else logger.warning
        self._expected: Dict[str, List[str]] = {}
        self.recording = True  # until the first optimizer has been read
        self._warned: List[str] = []

    def check(self, kind: str, where: str, family: str, names: List[str]) -> None:
        """Check the attributes `names` of `where` against those that the first optimizer had of the same `family`."""
        expected = self._expected.setdefault(family, [])
        extra = [name for name in names if name not in expected]
        if self.recording:
            expected.extend(extra)
        elif extra:
            message = f"Ignoring unexpected {where} in {kind} optimizer: {extra}"
            if message not in self._warned:
                self._log(message)
                self._warned.append(message)


def read(optimizer: torch.optim.Optimizer, tracker: AttributeTracker, automatic_loss_scaling: bool) -> HyperParameters:
    """The snapshot of an optimizer.

    Raises AssertionError for a class that the device does not have or for attributes of the wrong type, ValueError
    for amsgrad and for types that the device does not have.
    """
    kind = optimizer_kind(optimizer)
    group_vars = _poptorch_class(kind)._group_vars
    variable: Optional[optim.VariableAttributes] = getattr(optimizer, "variable_attrs", None)
    if variable is not None and automatic_loss_scaling:
        variable.markAsVariable("loss_scaling")
    defaults = {name: _value(optimizer.defaults, name) for name in group_vars}
    groups = tuple({name: _value(group, name) for name in group_vars} for group in optimizer.param_groups)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise UserError("maximize=True: the device's optimizers minimise. Negate the loss instead.")
    loss_scaling = getattr(optimizer, "loss_scaling", 1.0)
    _require_number(loss_scaling, "loss_scaling")

    # An executor sets state_dict.
    not_attributes = ("defaults", "state", "param_groups", "variable_attrs", "state_dict")
    attributes = [name for name in vars(optimizer) if name not in not_attributes]
    tracker.check(kind, "default group variable", "group", list(optimizer.defaults))
    tracker.check(kind, "optimizer attribute", "optimizer", attributes)
    for index, group in enumerate(optimizer.param_groups):
        tracker.check(kind, f"group {index} attribute", "group", [name for name in group if name != "params"])
    tracker.recording = False

    numeric = [name for name in group_vars if name not in ("amsgrad", "centered")]
    constant = [n for n in [*numeric, "loss_scaling"] if _is_constant(n, kind, variable, defaults, loss_scaling)]
    max_grad_norm = getattr(optimizer, "max_grad_norm", math.inf)
    if math.isnan(max_grad_norm):
        raise UserError("max_grad_norm must not be NaN")
    return HyperParameters(
        kind=kind,
        defaults=defaults,
        groups=groups,
        constant=tuple(constant),
        loss_scaling=float(loss_scaling),
        accum_type=_type(optimizer, "accum_type"),
        first_order_type=_type(
            optimizer, "velocity_accum_type" if "SGD" in kind else "first_order_momentum_accum_type"
        ),
        second_order_type=_type(optimizer, "second_order_momentum_accum_type"),
        max_grad_norm=float(max_grad_norm),
        use_tf_variant=bool(getattr(optimizer, "use_tf_variant", False)),
        params=tuple(tuple(group["params"]) for group in optimizer.param_groups),
    )


def optimizer_kind(optimizer: torch.optim.Optimizer) -> str:
    """The device's name for the optimizer. Warns about subclasses, whose Python code will not run."""
    if not {torch.optim.Optimizer, optim.Optimizer}.intersection(type(optimizer).__bases__) and type(optimizer) not in (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
    ):
        logger.warning(
            "Optimizer `%s` subclassed from classes in poptorch.optim or torch.optim are unlikely to behave as "
            "intended. Poptorch does not run Python optimizer code directly; but instead uses IPU native optimisers "
            "implemented in PopART.",
            type(optimizer).__name__,
        )
    if isinstance(optimizer, torch.optim.SGD):
        return "SGD1" if getattr(optimizer, "use_combined_accum", False) else "SGD2"
    if isinstance(optimizer, torch.optim.AdamW):  # before Adam, whose subclass it is since torch 2.7
        return "ADAMW" if getattr(optimizer, "bias_correction", True) else "ADAMW_NO_BIAS"
    if isinstance(optimizer, torch.optim.Adam):
        return "ADAM"
    if isinstance(optimizer, torch.optim.RMSprop):
        centered = [group["centered"] for group in optimizer.param_groups]
        assert all(c == centered[0] for c in centered), (
            "All parameter groups must have the same value for the 'centered' attribute: " + str(centered)
        )
        return "RMSPROP_CENTERED" if centered[0] else "RMSPROP"
    if isinstance(optimizer, optim.LAMB):
        return "LAMB" if optimizer.bias_correction else "LAMB_NO_BIAS"
    raise AssertionError(
        f"Unsupported optimizer type {type(optimizer).__name__}. Types supported SGD, Adam, AdamW, RMSprop of torch "
        "and poptorch, and poptorch.optim.LAMB"
    )


def _poptorch_class(kind: str) -> Type[optim.Optimizer]:
    by_prefix = {"SGD": optim.SGD, "ADAMW": optim.AdamW, "RMSPROP": optim.RMSprop, "LAMB": optim.LAMB}
    return next((cls for prefix, cls in by_prefix.items() if kind.startswith(prefix)), optim.Adam)


def _value(group: Dict[str, Any], name: str) -> Any:
    value = group.get(name, 1.0 if name == "velocity_scaling" else None)
    assert value is not None, f"Mandatory attribute {name} not found in optimizer group"
    if name == "amsgrad":
        if value:
            raise UserError("Only non-amsgrad Adam/AdamW optimizers are supported.")
    elif name == "betas":
        assert isinstance(value, tuple) and len(value) == 2, f"Expected a pair for betas but got {value} instead"
        for i, beta in enumerate(value):
            _require_number(beta, f"betas[{i}]")
    elif isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    else:
        _require_number(value, name)
    return value


def _require_number(value: Any, name: str) -> None:
    assert isinstance(value, numbers.Number), f"Expected a number for {name} but got {value} instead"


def _type(optimizer: torch.optim.Optimizer, name: str) -> torch.dtype:
    dtype = getattr(optimizer, name, torch.float32)
    if dtype not in (torch.float16, torch.float32):
        raise UserError(f"{name} must be set to either torch.float16 or torch.float32 not {dtype}")
    return dtype  # type: ignore[no-any-return]  # checked above


def _is_constant(
    name: str, kind: str, variable: Optional[optim.VariableAttributes], defaults: Dict[str, Any], loss_scaling: float
) -> bool:
    if variable is not None:
        return variable.isConstant(name)
    if name == "lr":
        return False
    if name == "loss_scaling":
        return loss_scaling == 1.0
    if name == "weight_decay":
        return bool(defaults[name] == (0.01 if kind.startswith("ADAMW") else 0.0))
    return name in _ALWAYS_CONSTANT or defaults.get(name) == _DEFAULTS.get(name)
