"""The device's copies of a model's parameters and buffers, and their installation for a forward.

For a run, the data of the program's tensors is exchanged for the device's. The parameter objects stay the same, so that
closures, tied weights and the flat lists of recurrent layers see the device's values; a functional call with other tensors, or a
copy of the model, would miss those.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import torch

from ipu_trainer.compat.torch_modules import own_tensors
from ipu_trainer.simulator.enums import CommGroupType
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.state.wrapped_model import is_wrapped, unwrap

# 64-bit floats become 32-bit ones on the device. Integers keep 64 bits, which PyTorch requires of indices; outputs have 32.
DEVICE_DTYPES = {torch.float64: torch.float32}
_MAY_BE_REASSIGNED = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@dataclasses.dataclass
class Variable:
    """One tensor of the model, however many names it has.

    homes are the dictionaries and keys under which modules keep it. copies are the device's: one for all replicas, or
    one per group of replicas, by group_of_replica.
    """

    names: List[str]
    homes: List[Tuple[Dict[str, Any], str]]
    is_parameter: bool
    owner: torch.nn.Module
    copies: List[torch.Tensor]
    group_of_replica: Optional[List[int]] = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def host(self) -> torch.Tensor:
        """The program's tensor, as the model has it now."""
        home, key = self.homes[0]
        if home.get(key) is None:
            raise createPoptorchError(f"{self.name} was removed from the model after it was compiled.")
        return home[key]  # type: ignore[no-any-return]  # modules keep Any

    def copy_for(self, replica: int) -> torch.Tensor:
        """The copy that a replica works on."""
        return self.copies[0 if self.group_of_replica is None else self.group_of_replica[replica]]


@dataclasses.dataclass(frozen=True)
class ReplicaGrouping:
    """Replicas in one group share a value: `shards` groups, or as many as CommGroupType makes."""

    kind: CommGroupType
    group_size: int

    def groups(self, num_replicas: int) -> List[int]:
        """The group of each replica."""
        if self.kind == CommGroupType.All:
            return [0] * num_replicas
        if self.kind == CommGroupType.NoGrouping:
            return list(range(num_replicas))
        if self.group_size < 1 or num_replicas % self.group_size:
            raise createPoptorchError(
                f"groups of {self.group_size} replicas do not divide {num_replicas} replicas; choose a factor"
            )
        num_groups = num_replicas // self.group_size
        if self.kind == CommGroupType.Consecutive:
            return [replica // self.group_size for replica in range(num_replicas)]
        return [replica % num_groups for replica in range(num_replicas)]


class DeviceWeights:
    """All variables of a model on the device."""

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device,
        num_replicas: int,
        groupings: Dict[str, ReplicaGrouping],
    ) -> None:
        """Collects the variables and copies them. Raises Error for a grouped parameter of the wrong shape."""
        self.variables: List[Variable] = []
        self._device = device
        by_id: Dict[int, Variable] = {}
        for module_name, module in model.named_modules():
            parameters, buffers = own_tensors(module)
            for home, is_parameter in ((parameters, True), (buffers, False)):
                for key, tensor in home.items():
                    if tensor is None:
                        continue
                    name = f"{module_name}.{key}" if module_name else key
                    variable = by_id.get(id(tensor))
                    if variable is None:
                        variable = by_id[id(tensor)] = Variable([], [], is_parameter, module, [])
                        self.variables.append(variable)
                    variable.names.append(name)
                    variable.homes.append((home, key))
        for name in groupings:
            if not any(name in variable.names for variable in self.variables):
                raise createPoptorchError(f"replicaGrouping: the model has no parameter {name}")
        for variable in self.variables:
            grouping = next((groupings[n] for n in variable.names if n in groupings), None)
            if grouping is not None:
                variable.group_of_replica = grouping.groups(num_replicas)
                num_groups, shape = max(variable.group_of_replica or [0]) + 1, variable.host().shape
                if not shape:
                    raise createPoptorchError("Scalars cannot be passed as per-replica weight tensor values")
                if shape[0] != num_groups:
                    raise createPoptorchError(
                        f"{variable.name} is grouped into {num_groups} groups of replicas, so that its first dimension "
                        f"must be {num_groups}; its shape is {tuple(shape)}"
                    )
        self.upload()

    @property
    def parameters(self) -> List[Variable]:
        """The variables that are parameters."""
        return [variable for variable in self.variables if variable.is_parameter]

    @property
    def buffers(self) -> List[Variable]:
        """The variables that are buffers."""
        return [variable for variable in self.variables if not variable.is_parameter]

    def find(self, tensor: torch.Tensor) -> Optional[Variable]:
        """The variable of one of the program's tensors: the same object, or one that shares its memory."""
        for variable in self.variables:  # before anything of it is read, which would fetch the weights
            if variable.host() is tensor:
                return variable
        address = tensor.data_ptr()
        return next((v for v in self.variables if address and v.host().data_ptr() == address), None)

    def split_buffers(self, num_replicas: int, names: Sequence[str]) -> None:
        """Give each replica a separate copy of these buffers."""
        for variable in self.buffers:
            if variable.name in names and variable.group_of_replica is None:
                variable.group_of_replica = list(range(num_replicas))
                variable.copies = [variable.copies[0].clone() for _ in range(num_replicas)]

    def upload(self, only: Optional[Sequence[str]] = None) -> None:
        """Copy the program's tensors to the device, all or those named."""
        with torch.no_grad():
            for variable in self.variables:
                if only is None or any(name in only for name in variable.names):
                    self._upload(variable)

    def _upload(self, variable: Variable) -> None:
        value = variable.host().data
        grouped = variable.is_parameter and variable.group_of_replica is not None
        count = 1 if variable.group_of_replica is None else max(variable.group_of_replica) + 1
        sources = [value[i] for i in range(count)] if grouped else [value] * count
        dtype = DEVICE_DTYPES.get(value.dtype, value.dtype)
        if not variable.copies:
            variable.copies = [s.to(device=self._device, dtype=dtype, copy=True).contiguous() for s in sources]
            return
        for copy, source in zip(variable.copies, sources):
            if copy.shape != source.shape:
                raise createPoptorchError(
                    f"{variable.name} has shape {tuple(source.shape)} now, and {tuple(copy.shape)} when the model was "
                    "compiled. Call destroy() on the executor and compile again."
                )
            copy.copy_(source)

    def download(self) -> None:
        """Copy the device's values into the program's tensors. Of buffers, replica 0's."""
        with torch.no_grad():
            for variable in self.variables:
                value = variable.host().data
                if variable.is_parameter and variable.group_of_replica is not None:
                    for i, copy in enumerate(variable.copies):
                        value[i].copy_(copy)
                else:
                    value.copy_(variable.copies[0])

    @contextlib.contextmanager
    def installed(self) -> Iterator[InstalledWeights]:
        """Let the model compute with the device's copies, at first replica 0's, until the body ends."""
        installed = InstalledWeights(self.variables)
        try:
            yield installed
        finally:
            installed.remove()


class InstalledWeights:
    """The device's copies, in place of the program's values."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        self._places: List[Tuple[Variable, torch.Tensor, Type[Any], torch.Tensor, Optional[torch.Tensor]]] = []
        self._replica = 0
        for variable in variables:
            host = variable.host()
            kind = type(host)
            if is_wrapped(host):
                unwrap(host)
            self._places.append((variable, host, kind, host.data, host.grad))
            host.data = variable.copy_for(0)
            host.grad = None
        self._split = [place for place in self._places if place[0].group_of_replica is not None]

    def use_replica(self, replica: int) -> None:
        """Switch to a replica's copies, where replicas have separate ones."""
        if replica != self._replica:
            for variable, host, _, _, _ in self._split:
                host.data = variable.copy_for(replica)
            self._replica = replica

    def tensors(self) -> Iterator[Tuple[Variable, torch.Tensor]]:
        """Each variable with the program's tensor that now has the device's value."""
        for variable, host, _, _, _ in self._places:
            yield variable, host

    def check_reassigned(self) -> None:
        """Raise Error if forward replaced tensors of the model."""
        for variable, host, _, _, _ in self._places:
            if isinstance(variable.owner, _MAY_BE_REASSIGNED):
                continue
            kind = "Parameter" if variable.is_parameter else "Buffer"
            for (home, key), name in zip(variable.homes, variable.names):
                if key not in home:
                    raise createPoptorchError(
                        f"{kind} {name} is removed from the model when calling the forward method."
                    )
                if home[key] is not host or host.data_ptr() != variable.copy_for(self._replica).data_ptr():
                    raise createPoptorchError(
                        f"{kind} {name} is reassigned within the model when calling the forward method. This is not "
                        f"supported. Consider using self.{name}.copy_(src) to copy data from a source tensor, where "
                        "src is the name of the source tensor."
                    )

    def remove(self) -> None:
        """Restore the program's tensors."""
        for variable, host, kind, data, grad in self._places:
            host.data = data
            host.grad = grad
            host.__class__ = kind
            for home, key in variable.homes:  # also after forward has replaced it
                home[key] = host
