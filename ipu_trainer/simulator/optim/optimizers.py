"""poptorch.optim: torch's optimizers with the arguments that the device adds, and LAMB.

Their Python `step()` never runs on behalf of an executor. The device computes the update from the hyper-parameters
that it was given by the last `setOptimizer()` (see weight_update.py), so an instance is a description: which
tensors, which numbers, which of the numbers may change, and the state that was read back.

The positional order of the arguments is poptorch's for torch 2.0, on every version of torch.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from ipu_trainer.simulator.logs import logger

_ACCUM_TYPES = (torch.float16, torch.float32)
_MOMENT_TYPES = ("accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")
# What None stands for in the arguments that the device adds. Types of accumulators: float32.
_DEFAULTS: Dict[str, Any] = {
    "loss_scaling": 1.0,
    "velocity_scaling": 1.0,
    "use_combined_accum": False,
    "max_grad_norm": math.inf,
    "bias_correction": True,
    "use_tf_variant": False,
}


class VariableAttributes:
    """Which attributes of an optimizer the program may change after compiling."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes = variable_attributes
        self._allowed_attributes = allowed_attributes

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is compiled in."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Compile the attribute in. Raises AssertionError for an unknown one."""
        self._check(attr)
        self._variable_attributes = [a for a in self._variable_attributes if a != attr]

    def markAsVariable(self, attr: str) -> None:
        """Allow the attribute to change. Raises AssertionError for an unknown one."""
        self._check(attr)
        self._variable_attributes.append(attr)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed_attributes, f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"


class Optimizer:
    """What poptorch's optimizers have in common: the device's state, and whose copy of it is newer."""

    # Arguments beyond those of torch's class: attributes that are saved with the optimizer.
    _child_only: Tuple[str, ...] = ()
    # What the device reads of each parameter group.
    _group_vars: Tuple[str, ...] = ()

    loss_scaling: float
    variable_attrs: VariableAttributes
    defaults: Dict[str, Any]  # torch's
    param_groups: List[Dict[str, Any]]

    def _initialise(self, parent: Callable[..., None], arguments: Dict[str, Any], **group: Any) -> None:
        """Call `parent`, torch's __init__, and set the added attributes, from __init__'s locals(); None means the default.

        `group` is added to the defaults of each parameter group. Raises AssertionError for a type of accumulator that is
        neither float32 nor float16.
        """
        given = {k: v for k, v in arguments.items() if k not in ("self", "__class__") and v is not None}
        self._state_dict: Dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False
        parent(self, **{k: v for k, v in given.items() if k not in self._child_only})
        for name in self._child_only:
            value = given.get(name, torch.float32 if name.endswith("_type") else _DEFAULTS[name])
            assert not name.endswith("_type") or value in _ACCUM_TYPES, (
                "Accumulation types must be either torch.float32 or torch.float16"
            )
            setattr(self, name, value)
        self.defaults.update(group)
        for parameters in self.param_groups:
            parameters.update({**group, **parameters})
        self.variable_attrs = VariableAttributes(list(given), [*self.defaults, "loss_scaling"])

    def state_dict(self) -> Dict[str, Any]:
        """torch's dictionary, "ipu_state" (tensors by name, or None) and "ipu_param" (hyper-parameters, or None).

        Once an executor has the optimizer, it brings the state from the device first.
        """
        return self.get_state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over such a dictionary; the device gets its part before the next run.

        Raises RuntimeError if it is empty, or has no device state.
        """
        self._check_state(state)
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]  # every subclass is one
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        """As state_dict(), from what is on the host."""
        return {**self._state_dict, **torch.optim.Optimizer.state_dict(self)}  # type: ignore[arg-type]

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Remember the device's part of the dictionary, to be written to the device."""
        self._check_state(state)
        self._state_dict = state
        self.ipu_state_is_dirty = True
        self.host_state_is_dirty = False

    def has_state(self) -> bool:
        """Whether there is state to write to the device."""
        return self._state_dict.get("ipu_state") is not None and self._state_dict.get("ipu_param") is not None

    @staticmethod
    def _check_state(state: Dict[str, Any]) -> None:
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")

    def __getstate__(self) -> Dict[str, Any]:
        state: Dict[str, Any] = {k: getattr(self, k) for k in ("defaults", "state", "param_groups")}
        own = [name for name in self._child_only if name not in self.defaults]
        state.update({name: getattr(self, name) for name in [*own, "variable_attrs", "_state_dict"]})
        state.update(ipu_state_is_dirty=self.has_state(), host_state_is_dirty=False)
        return state


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum."""

    _child_only = (
        "loss_scaling",
        "velocity_scaling",
        "use_combined_accum",
        "accum_type",
        "velocity_accum_type",
        "max_grad_norm",
    )
    _group_vars = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        """use_combined_accum keeps velocity and gradient accumulator in one tensor, then velocity_scaling applies.

        max_grad_norm: clip the norm of all gradients together. None of any argument means torch's default, 1.0 for
        the scalings, float32 for the types and no clipping.
        """
        arguments = dict(locals())
        combined = (
            {"velocity_scaling": 1.0 if velocity_scaling is None else velocity_scaling} if use_combined_accum else {}
        )
        self._initialise(torch.optim.SGD.__init__, arguments, **combined)
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning(
                "velocity_scaling value ignored when using the separate variant (use_combined_accum=False). In "
                "future, this will lead to an error. Please update your code."
            )


class Adam(Optimizer, torch.optim.Adam):
    """Adam, with weight decay as a penalty in the gradient."""

    _child_only = ("loss_scaling", *_MOMENT_TYPES, "max_grad_norm")
    _group_vars = ("lr", "betas", "eps", "weight_decay", "amsgrad")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        """The types are those of the gradient accumulator and of the two moments: float32 or float16."""
        self._initialise(torch.optim.Adam.__init__, locals())


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay."""

    _child_only = ("loss_scaling", "bias_correction", *_MOMENT_TYPES, "max_grad_norm")
    _group_vars = ("lr", "betas", "weight_decay", "eps", "amsgrad")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        """bias_correction=False is accepted and, as in SDK 3.4, the correction is applied all the same."""
        self._initialise(torch.optim.AdamW.__init__, locals())


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, centered or not, with momentum."""

    _child_only = ("loss_scaling", *_MOMENT_TYPES, "use_tf_variant")
    _group_vars = ("lr", "momentum", "weight_decay", "alpha", "eps", "centered")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        """use_tf_variant computes as TensorFlow does: eps under the root, learning rate inside the momentum."""
        self._initialise(torch.optim.RMSprop.__init__, locals())


class LAMB(Optimizer, torch.optim.Optimizer):
    """Adam's direction, rescaled per tensor to the norm of the weights. Source: You et al., arXiv:1904.00962."""

    _child_only = ("loss_scaling", "bias_correction", *_MOMENT_TYPES)
    bias_correction: bool
    _group_vars = ("lr", "weight_decay", "betas", "eps", "max_weight_norm")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        """max_weight_norm bounds the norm of the weights that the update is scaled to; None means 65500."""
        self._initialise(_initialise_lamb, locals())
        self.max_weight_norm = self.defaults["max_weight_norm"]

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """One update on the host, for comparison."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    lamb_update(p, p.grad, self.state[p], group, self.bias_correction)
        return loss


def lamb_update(
    p: torch.Tensor, grad: torch.Tensor, state: Dict[str, Any], group: Dict[str, Any], bias_correction: bool
) -> None:
    """Change p and its state in place by one LAMB step."""
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    beta1, beta2 = group["betas"]
    state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    correction1 = 1 - beta1 ** float(state["step"]) if bias_correction else 1.0
    correction2 = 1 - beta2 ** float(state["step"]) if bias_correction else 1.0
    denominator = (state["exp_avg_sq"].sqrt() / math.sqrt(correction2)).add_(group["eps"])
    update = (state["exp_avg"] / correction1 / denominator).add_(p, alpha=group["weight_decay"])
    weight_norm, update_norm = float(p.norm()), float(update.norm())
    capped = min(weight_norm, group["max_weight_norm"])
    trust = capped / update_norm if capped > 0 and update_norm > 0 else 1.0
    p.add_(update, alpha=-group["lr"] * trust)


def _initialise_lamb(optimizer: LAMB, params: Iterable[Any], **given: Any) -> None:
    defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "max_weight_norm": 65500.0}
    torch.optim.Optimizer.__init__(optimizer, params, {**defaults, **given})
