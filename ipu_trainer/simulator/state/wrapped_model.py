"""The program's model during training: reading it, its parameters or its buffers fetches the weights from the device first.

After a run the newest weights are on the device, but the program may read its model at any time. So the executor replaces the
classes of the model and its tensors by subclasses that fetch first. Wrapper objects would not work: the program holds the
originals. Copies and saved files have the original classes.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import weakref
from typing import Any, Dict, Iterator, Type

import torch

from ipu_trainer.compat.torch_operators import without_torch_function
from ipu_trainer.simulator.errors import createPoptorchError

_MARK = "_is_poptorch_wrapper"


def is_wrapped(obj: Any) -> bool:
    """Whether the object's class is one that wrap() made."""
    return _MARK in type(obj).__dict__


def unwrap(obj: Any) -> None:
    """Restore the object's class."""
    if is_wrapped(obj):
        object.__setattr__(obj, "__class__", type(obj).__bases__[0])


def unwrap_model(model: torch.nn.Module) -> None:
    """Restore the classes of the model and all its tensors."""
    unwrap(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        unwrap(tensor)


def wrap_model(model: torch.nn.Module, executor: Any) -> None:
    """Let reading the model, its parameters or its buffers call executor.copyWeightsToHostIfNeeded() first.

    Holds the executor weakly. Raises Error for buffers of other classes than torch.Tensor.
    """
    parent = weakref.ref(executor)
    parameter_class, buffer_class = _tensor_class(torch.nn.Parameter, parent), _tensor_class(torch.Tensor, parent)
    for buffer in model.buffers():
        if type(buffer) is not torch.Tensor:
            raise createPoptorchError(f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})")
    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.__class__ = parameter_class
    for buffer in model.buffers():
        buffer.__class__ = buffer_class
    object.__setattr__(model, "__class__", _model_class(type(model), parent))


def _fetch(parent: Any) -> bool:
    executor = parent()
    return executor is not None and bool(executor.copyWeightsToHostIfNeeded())


@contextlib.contextmanager
def _unwrapped(*objects: Any) -> Iterator[None]:
    """The objects have their original classes until the body ends."""
    wrapped = [(obj, type(obj)) for obj in objects if is_wrapped(obj)]
    for obj, _ in wrapped:
        unwrap(obj)
    try:
        yield
    finally:
        for obj, wrapper in wrapped:
            object.__setattr__(obj, "__class__", wrapper)


def _reduce_unwrapped(obj: Any, protocol: Any) -> Any:
    """__reduce_ex__ of the object as if it had not been wrapped."""
    with _unwrapped(obj):
        reduced = obj.__reduce_ex__(protocol)
    if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]  # pickle insists that its argument is the class of the object
        return (_new, *reduced[1:])
    return reduced


def _new(cls: Type[Any], *args: Any) -> Any:
    return cls.__new__(cls, *args)


def _tensor_class(base: Type[Any], parent: Any) -> Type[Any]:
    # Without __torch_function__, torch's functions ignore the class of their arguments.
    class Wrapped(base):  # type: ignore[misc]  # a base chosen at run time
        _is_poptorch_wrapper = True

        def __getattribute__(self, name: str) -> Any:
            _fetch(parent)
            return super().__getattribute__(name)

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            _fetch(parent)
            with without_torch_function():
                return func(*args, **(kwargs or {}))

        def __reduce_ex__(self, protocol: Any) -> Any:
            _fetch(parent)
            return _reduce_unwrapped(self, protocol)

        def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
            _fetch(parent)
            if id(self) in memo:
                return memo[id(self)]
            with _unwrapped(self):
                return self.__deepcopy__(memo)

    Wrapped.__name__ = Wrapped.__qualname__ = f"Poptorch{'Parameter' if base is torch.nn.Parameter else 'Buffer'}"
    return Wrapped


def _model_class(base: Type[torch.nn.Module], parent: Any) -> Type[torch.nn.Module]:
    class Wrapped(base):  # type: ignore[valid-type,misc]  # a base chosen at run time
        _is_poptorch_wrapper = True

        def copyWeightsToHostIfNeeded(self) -> bool:
            """Fetch the weights if the device has newer ones; whether it had."""
            return _fetch(parent)

        def destroy(self) -> None:
            """Destroy the executor that has this model."""
            executor = parent()
            if executor is not None:
                executor.destroy()

        def __getattribute__(self, name: str) -> Any:
            if name == "_host_weights_version":
                executor = parent()
                return None if executor is None else executor._host_weights_version
            if name in ("_buffers", "_parameters", "forward"):
                _fetch(parent)
            return object.__getattribute__(self, name)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
            """The model's state, in plain tensors that share its memory: it can be loaded where there is no poptorch."""
            _fetch(parent)
            with _unwrapped(*self.parameters(), *self.buffers()):
                if args or destination is not None:
                    return super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
                state = super().state_dict(prefix=prefix, keep_vars=keep_vars)
            return collections.OrderedDict(
                (k, torch.nn.Parameter(v.data, v.requires_grad) if is_wrapped(v) else v) for k, v in state.items()
            )

        def __reduce_ex__(self, protocol: Any) -> Any:
            _fetch(parent)
            return _reduce_unwrapped(self, protocol)

    Wrapped.__name__ = Wrapped.__qualname__ = f"Poptorch{base.__name__}"
    return Wrapped
