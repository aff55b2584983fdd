"""The weight update on the device, by its HyperParameters.

torch's optimizer computes it on float32 values, so that one stage in float32 equals plain PyTorch bit for bit. The device
differs in this: weights and moments may be stored in float16 (read, computed in float32, rounded back), momentum starts from
zero, and the state has PopART's names.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.numerics.half_precision import stored_as
from ipu_trainer.simulator.optim import optimizers as optim
from ipu_trainer.simulator.optim.hyperparameters import HyperParameters
from ipu_trainer.simulator.optim.loss_scaling import AutomaticLossScaling
from ipu_trainer.simulator.state.device_weights import DeviceWeights, Variable

# The key of torch's state -> PopART's prefix, per kind of optimizer.
_STATE_NAMES: Dict[str, Dict[str, str]] = {
    "SGD": {"momentum_buffer": "Accl___"},
    "ADAM": {"exp_avg": "Accl1___", "exp_avg_sq": "Accl2___", "step": "Step___"},
    "LAMB": {"exp_avg": "Accl1___", "exp_avg_sq": "Accl2___", "step": "Step___"},
    "RMSPROP": {"square_avg": "Accl1___", "momentum_buffer": "Accl2___", "grad_avg": "Accl3___"},
}
# The attribute of a group -> PopART's name, where the value is stored as it is.
_PARAM_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "eps": "eps",
    "alpha": "alpha",
    "momentum": "momentum",
    "dampening": "dampening",
    "velocity_scaling": "velocityScaling",
    "max_weight_norm": "maxWeightNorm",
}


class Slot:
    """One copy of one parameter on the device, with the float32 leaf that torch's optimizer works on."""

    def __init__(self, variable: Variable, copy: torch.Tensor, replica_group: int) -> None:
        self.variable = variable
        self.stored = copy
        self.replica_group = replica_group
        self.leaf = copy if copy.dtype == torch.float32 else copy.float()
        self.leaf = self.leaf.detach()  # shares memory with float32 weights


class WeightUpdate:
    """Optimizer state on the device, and the update."""

    def __init__(
        self,
        weights: DeviceWeights,
        hyper: HyperParameters,
        stochastic_rounding: bool,
        automatic: Optional[AutomaticLossScaling] = None,
    ) -> None:
        """Raises Error for a parameter of the optimizer that the model does not have."""
        self.automatic = automatic
        self.last_loss_scaling = hyper.loss_scaling  # of the last update
        self._stochastic_rounding = stochastic_rounding
        self._weights = weights
        self._slots: List[List[Slot]] = []  # per parameter group
        self.hyper = hyper
        self._loaded_params: Dict[str, torch.Tensor] = {}
        self.set(hyper)

    @property
    def loss_scaling(self) -> float:
        """The present factor of the loss."""
        return self.hyper.loss_scaling * (1.0 if self.automatic is None else self.automatic.factor)

    @property
    def slots(self) -> List[Slot]:
        """Everything that is updated, in the order of the parameter groups."""
        return [slot for group in self._slots for slot in group]

    def set(self, hyper: HyperParameters) -> None:
        """Use other hyper-parameters. State is preserved where the kind of optimizer and the groups are the same."""
        slots = [self._slots_of(params) for params in hyper.params]
        same = self._slots and hyper.kind == self.hyper.kind and _variables(slots) == _variables(self._slots)
        changed = not self._slots or hyper != self.hyper
        self.hyper = hyper
        self._loaded_params = {}
        if not same:
            self._slots = slots
            groups = [
                {"params": [slot.leaf for slot in group], **self._torch_group(values)}
                for group, values in zip(slots, hyper.groups)
            ]
            self._torch = self._make([group for group in groups if group["params"]])
            self._start_state()
        used = [values for values, group_slots in zip(hyper.groups, self._slots) if group_slots]
        for group, values in zip(self._torch.param_groups, used):
            group.update(self._torch_group(values))
        if changed and logger.isEnabledFor(logging.DEBUG):
            for line in hyper.describe():
                logger.debug(line)

    def _slots_of(self, params: Sequence[torch.Tensor]) -> List[Slot]:
        slots = []
        for tensor in params:
            variable = self._weights.find(tensor)
            if variable is None:
                raise createPoptorchError(
                    f"the optimizer has a parameter of shape {tuple(tensor.shape)} that the model does not have. Make "
                    "the optimizer from the parameters of the model that is given to trainingModel()."
                )
            if variable.is_parameter and variable.copies[0].is_floating_point():
                slots += [Slot(variable, copy, i) for i, copy in enumerate(variable.copies)]
        return slots

    def _make(self, groups: List[Dict[str, Any]]) -> torch.optim.Optimizer:
        kind = self.hyper.kind
        if not groups:
            groups = [{"params": [torch.zeros(1)], **self._torch_group(self.hyper.groups[0])}]
        if kind.startswith("SGD"):
            return torch.optim.SGD(groups, lr=0.1, foreach=False)
        if kind == "ADAM":
            return torch.optim.Adam(groups, foreach=False)
        if kind.startswith("ADAMW"):  # without bias correction too: SDK 3.4 corrects all the same
            return torch.optim.AdamW(groups, foreach=False)
        if kind.startswith("RMSPROP"):
            return torch.optim.RMSprop(groups, foreach=False)
        return optim.LAMB(groups, bias_correction=kind == "LAMB")

    def _torch_group(self, values: Dict[str, Any]) -> Dict[str, Any]:
        return {name: value for name, value in values.items() if name != "velocity_scaling"}

    def _start_state(self) -> None:
        """The state that the device allocates before the first step: all zero."""
        kind = self.hyper.kind
        for group, slots in zip(self._torch.param_groups, [s for s in self._slots if s]):
            for slot in slots:
                state = self._torch.state[slot.leaf]
                zeros = torch.zeros_like(slot.leaf)
                has_momentum = bool(group.get("momentum")) or "momentum" not in self.hyper.constant
                if kind.startswith("SGD"):
                    if has_momentum:
                        state["momentum_buffer"] = zeros
                elif kind.startswith("RMSPROP"):
                    state.update(step=torch.tensor(0.0), square_avg=zeros)
                    if has_momentum:
                        state["momentum_buffer"] = zeros.clone()
                    if group["centered"]:
                        state["grad_avg"] = zeros.clone()
                else:
                    step = torch.tensor(0.0) if kind.startswith("ADAM") else 0
                    state.update(step=step, exp_avg=zeros, exp_avg_sq=zeros.clone())

    # The update.

    @torch.no_grad()
    def step(self, gradients: Dict[int, torch.Tensor], generator: Optional[torch.Generator] = None) -> None:
        """Update every slot from its gradient, float32 and already reduced. Keys are id(slot).

        A slot without a gradient is left alone, as in PyTorch.
        """
        half = [slot for slot in self.slots if slot.stored.dtype != torch.float32]
        for slot in half:
            slot.leaf.copy_(slot.stored)
        with_gradient = [slot for slot in self.slots if id(slot) in gradients]
        for slot in self.slots:
            slot.leaf.grad = gradients.get(id(slot))
        if self.hyper.max_grad_norm < math.inf and with_gradient:
            torch.nn.utils.clip_grad_norm_([slot.leaf for slot in with_gradient], self.hyper.max_grad_norm)
        former = self._use_loaded_values()
        try:
            if self.hyper.use_tf_variant:
                self._tf_rmsprop()
            else:
                self._torch.step()
        finally:
            for group, values in former:
                group.update(values)
        for slot in self.slots:
            slot.leaf.grad = None
        for slot in half:
            slot.stored.copy_(stored_as(slot.leaf, slot.stored.dtype, self._stochastic_rounding, generator))
        self._round_state(generator)

    def _use_loaded_values(self) -> List[Tuple[Dict[str, Any], Dict[str, Any]]]:
        """Replace the groups' values by those that were loaded with the state. Returns each group's former values.

        A group has one value here: where the loaded ones differ within it, that of its first tensor.
        """
        if not self._loaded_params:
            return []
        former = []
        groups = [(values, slots) for values, slots in zip(self.hyper.groups, self._slots) if slots]
        for group, (values, slots) in zip(self._torch.param_groups, groups):
            changed = self._decoded(values, slots[0].variable.name)
            former.append((group, {name: group[name] for name in changed if name in group}))
            group.update(self._torch_group(changed))
        return former

    def _tf_rmsprop(self) -> None:
        """RMSprop as TensorFlow has it. Source: tf.keras.optimizers.legacy.RMSprop, `epsilon` inside the root."""
        for group in self._torch.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, grad = self._torch.state[p], p.grad
                if group["weight_decay"]:
                    grad = grad.add(p, alpha=group["weight_decay"])
                square = state["square_avg"].mul_(group["alpha"]).addcmul_(grad, grad, value=1 - group["alpha"])
                if group["centered"]:
                    mean = state["grad_avg"].mul_(group["alpha"]).add_(grad, alpha=1 - group["alpha"])
                    square = square - mean * mean
                update = group["lr"] * grad / (square + group["eps"]).sqrt()
                if group["momentum"]:
                    update = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                p.sub_(update)

    def _round_state(self, generator: Optional[torch.Generator]) -> None:
        """Moments that are stored in float16 lose what float16 cannot hold."""
        first, second = self.hyper.first_order_type, self.hyper.second_order_type
        if first == torch.float32 and second == torch.float32:
            return
        types = {
            "momentum_buffer": first,
            "exp_avg": first,
            "grad_avg": first,
            "exp_avg_sq": second,
            "square_avg": second,
        }
        if self.hyper.kind.startswith("RMSPROP"):
            types["square_avg"] = first
        for state in self._torch.state.values():
            for name, dtype in types.items():
                if dtype == torch.float16 and state.get(name) is not None:
                    state[name].copy_(stored_as(state[name], dtype, self._stochastic_rounding, generator))

    # The state, by PopART's names.

    def read(self) -> Dict[str, Any]:
        """{"ipu_state": tensors by name, "ipu_param": scalars by name}, on the host."""
        names = next(names for prefix, names in _STATE_NAMES.items() if self.hyper.kind.startswith(prefix))
        state: Dict[str, torch.Tensor] = {}
        for variable, slots in self._by_variable():
            for key, prefix in names.items():
                values = [self._torch.state[slot.leaf].get(key) for slot in slots]
                tensors = [torch.as_tensor(v, dtype=torch.float32).detach().cpu() for v in values if v is not None]
                if tensors:
                    grouped = variable.group_of_replica is not None
                    state[prefix + variable.name] = torch.stack(tensors) if grouped else tensors[0].clone()
        if self.automatic is not None:
            state["lossScaleUpdateFactor"] = torch.tensor(self.automatic.factor)
        return {"ipu_state": state, "ipu_param": {**self._params(), **self._loaded_params}}

    def write(self, saved: Dict[str, Any]) -> None:
        """Load what read() returned. Names that it lacks keep their values, with a warning.

        Raises Error for a tensor of another shape.
        """
        names = next(names for prefix, names in _STATE_NAMES.items() if self.hyper.kind.startswith(prefix))
        missing = []
        for variable, slots in self._by_variable():
            for key, prefix in names.items():
                if all(self._torch.state[slot.leaf].get(key) is None for slot in slots):
                    continue
                value = saved["ipu_state"].get(prefix + variable.name)
                if value is None:
                    missing.append(prefix + variable.name)
                    continue
                pieces = list(value) if variable.group_of_replica is not None else [value]
                for slot, piece in zip(slots, pieces):
                    self._write_state(slot, key, piece, prefix + variable.name)
        if self.automatic is not None and "lossScaleUpdateFactor" in saved["ipu_state"]:
            self.automatic.factor = float(saved["ipu_state"]["lossScaleUpdateFactor"])
        present = self._params()
        self._loaded_params = {
            name: torch.as_tensor(value, dtype=torch.float32)
            for name, value in saved["ipu_param"].items()
            if name in present and not torch.equal(torch.as_tensor(value, dtype=torch.float32), present[name])
        }
        missing += [name for name in present if name not in saved["ipu_param"]]
        if missing:
            logger.warning("The loaded optimizer state has no %s; the device keeps its values.", ", ".join(missing))

    def _write_state(self, slot: Slot, key: str, value: torch.Tensor, name: str) -> None:
        state = self._torch.state[slot.leaf]
        if state.get(key) is None:
            return
        if key == "step" and float(value) <= -1:  # the device takes the root of a negative number here
            value = torch.tensor(math.nan)
        if isinstance(state[key], int):
            state[key] = float(value)
            return
        if tuple(state[key].shape) != tuple(value.shape):
            raise createPoptorchError(
                f"optimizer state {name} has shape {tuple(value.shape)}, and the model's {tuple(state[key].shape)}"
            )
        with torch.no_grad():
            state[key].copy_(value)

    def _by_variable(self) -> List[Tuple[Variable, List[Slot]]]:
        found: Dict[int, Tuple[Variable, List[Slot]]] = {}
        for slot in self.slots:
            found.setdefault(id(slot.variable), (slot.variable, []))[1].append(slot)
        return list(found.values())

    def _params(self) -> Dict[str, torch.Tensor]:
        """The variable numbers, per parameter. SGD's are combined as PopART combines them."""
        out = {"lossScaling_FLOAT": torch.tensor(self.hyper.loss_scaling)}
        for values, slots in zip(self.hyper.groups, self._slots):
            for slot in slots:
                for name, value in self._encoded(values).items():
                    out[f"{name}___specific___{slot.variable.name}"] = torch.tensor(value)
        return out

    def _encoded(self, values: Dict[str, Any]) -> Dict[str, float]:
        variable = {k: v for k, v in values.items() if k not in self.hyper.constant}
        if not self.hyper.kind.startswith("SGD"):
            return {_PARAM_NAMES[k]: float(v) for k, v in variable.items() if k in _PARAM_NAMES}
        lr, damping, scaling = values["lr"], values["dampening"], self.hyper.loss_scaling
        encoded = {
            "scaledLearningRate0": lr * (1 - damping) / scaling,
            "weightDecayScaleFactor0": 1 - lr * (1 - damping) * values["weight_decay"],
        }
        others = [k for k in ("momentum", "dampening", "velocity_scaling") if k in variable]
        return {**encoded, **{_PARAM_NAMES[k]: float(variable[k]) for k in others}}

    def _decoded(self, values: Dict[str, Any], name: str) -> Dict[str, Any]:
        """The group's values, replaced by those that were loaded for this parameter."""
        loaded = {
            key[: -len(f"___specific___{name}")]: float(value)
            for key, value in self._loaded_params.items()
            if key.endswith(f"___specific___{name}")
        }
        changed = dict(values)
        for attribute, popart_name in _PARAM_NAMES.items():
            if popart_name in loaded:
                changed[attribute] = loaded[popart_name]
        undamped = 1 - changed.get("dampening", 0.0)
        if "scaledLearningRate0" in loaded and undamped:
            changed["lr"] = loaded["scaledLearningRate0"] * self.hyper.loss_scaling / undamped
        if "weightDecayScaleFactor0" in loaded and undamped and changed["lr"]:
            changed["weight_decay"] = (1 - loaded["weightDecayScaleFactor0"]) / (changed["lr"] * undamped)
        return changed


def _variables(slots: Sequence[Sequence[Slot]]) -> List[List[int]]:
    return [[id(slot.variable) for slot in group] for group in slots]
