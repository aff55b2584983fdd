"""The arguments of one call: bound to forward's signature, compared with the first call's, split into micro-batches.

The graph of a compiled model has as many inputs, of such shapes, as the call that compiled it. Everything else that
was passed then (numbers, strings, None) is part of the graph, so a later call must pass the same.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from ipu_trainer.simulator.arguments.nested_values import tensors_of, with_tensors
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.logs import logger
from ipu_trainer.simulator.options.options import Options

_MISMATCH = (
    "\nThis error occurred because the inputs passed at runtime don't match the inputs used to compile the model."
    "\nTo recompile the model for the new inputs create a new inferenceModel / trainingModel wrapper or call destroy() "
    "on the current one and try again."
)


@dataclasses.dataclass(eq=False)
class BoundArguments:
    """Positional and named arguments in the order of forward's parameters, defaults filled in."""

    args: List[Any] = dataclasses.field(default_factory=list)
    arg_names: List[str] = dataclasses.field(default_factory=list)
    kwargs: Dict[str, Any] = dataclasses.field(default_factory=dict)

    def tensors(self, like: Any = None) -> List[torch.Tensor]:
        """All tensors, in the order in which the graph has them as inputs."""
        return tensors_of((self.args, self.kwargs), like=None if like is None else (like.args, like.kwargs))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Tuple[List[Any], Dict[str, Any]]:
        """The arguments around other tensors, to call forward with."""
        args, kwargs = with_tensors((self.args, self.kwargs), tensors)
        return args, kwargs

    def copy(self) -> BoundArguments:
        """The same values in new lists."""
        return BoundArguments(list(self.args), list(self.arg_names), dict(self.kwargs))

    def check_same(self, later: BoundArguments) -> None:
        """Raise Error if a later call differs in anything but the values of tensors."""
        if len(later.args) != len(self.args):
            raise createPoptorchError(
                f"Number of positional arguments mismatch: expected {len(self.args)} arguments but got "
                f"{len(later.args)}.{_MISMATCH}"
            )
        for name, compiled, given in zip(self.arg_names, self.args, later.args):
            _check_same(name, compiled, given)
        _check_same_keys("named arguments", self.kwargs, later.kwargs)
        for name, compiled in self.kwargs.items():
            _check_same(name, compiled, later.kwargs[name])


def _check_same(name: str, compiled: Any, given: Any) -> None:
    if type(compiled) is not type(given):
        raise createPoptorchError(
            f"Type mismatch for {name}: expected {type(compiled)} but got {type(given)}.{_MISMATCH}"
        )
    if isinstance(compiled, torch.Tensor):
        for what, expected, got in (
            ("Data type", compiled.dtype, given.dtype),
            ("Shape", compiled.shape, given.shape),
        ):
            if expected != got:
                raise createPoptorchError(f"{what} mismatch for {name}: expected {expected} but got {got}.{_MISMATCH}")
    elif isinstance(compiled, (tuple, list)):
        if len(compiled) != len(given):
            raise createPoptorchError(
                f"Length mismatch for {name}: expected {len(compiled)} elements but got {len(given)}.{_MISMATCH}"
            )
        for index, (compiled_item, item) in enumerate(zip(compiled, given)):
            _check_same(f"{name}[{index}]", compiled_item, item)
    elif isinstance(compiled, dict):
        _check_same_keys(name, compiled, given)
        for key, compiled_item in compiled.items():
            _check_same(f"{name}[{key}]", compiled_item, given[key])
    else:
        inside = tensors_of(compiled)
        if inside:
            _check_same(name, tuple(inside), tuple(tensors_of(given)))
        elif compiled != given:
            raise createPoptorchError(f"Value mismatch for {name}: expected {compiled} but got {given}.{_MISMATCH}")


def _check_same_keys(name: str, compiled: Dict[str, Any], given: Dict[str, Any]) -> None:
    unexpected, missing = sorted(set(given) - set(compiled)), sorted(set(compiled) - set(given))
    if unexpected or missing:
        details = ["Unexpected arguments: " + ", ".join(unexpected)] if unexpected else []
        details += ["Missing arguments: " + ", ".join(missing)] if missing else []
        raise createPoptorchError(f"Keys mismatch for {name}: {'. '.join(details)}.{_MISMATCH}")


class ArgumentBinder:
    """Binds calls to one signature."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        parameters = inspect.signature(forward).parameters
        self._parameters = list(parameters.values())
        self._names = list(parameters)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self._takes_any = any(parameter.kind in variadic for parameter in self._parameters)
        self._warned_not_contiguous = False

    def bind(self, args: Sequence[Any], kwargs: Dict[str, Any], compiled: bool) -> BoundArguments:
        """The call's arguments in order.

        Raises AssertionError for arguments that forward does not take, Error for missing ones. Copies tensors that
        are not contiguous, with a warning; warns of dictionaries unless already compiled.
        """
        names = self._names
        assert self._takes_any or len(args) + len(kwargs) <= len(names), (
            f"Too many arguments provided: expected {names} ({len(names)}) but got {len(args) + len(kwargs)}"
        )
        if not self._takes_any:
            for name in kwargs:
                assert name in names, f"{name} is not a valid parameter.Allowed values are {names}"
        bound = self._bind(list(args), kwargs)
        if not compiled:
            _warn_of_dicts(bound.args)
        if any(not tensor.is_contiguous() for tensor in bound.tensors()):
            bound.args, bound.kwargs = bound.with_tensors([tensor.contiguous() for tensor in bound.tensors()])
            if not self._warned_not_contiguous:
                logger.warning("At least one input tensor is not contiguous: non-contiguous tensors will be converted.")
                self._warned_not_contiguous = True
        return bound

    def _bind(self, args: List[Any], kwargs: Dict[str, Any]) -> BoundArguments:
        bound = BoundArguments()
        after_variadic = False  # what follows *args can only be passed by name
        for position, (name, parameter) in enumerate(zip(self._names, self._parameters)):
            if parameter.kind == inspect.Parameter.VAR_KEYWORD:
                bound.kwargs.update({k: v for k, v in kwargs.items() if k not in self._names[:position]})
                continue
            if parameter.kind == inspect.Parameter.VAR_POSITIONAL:
                after_variadic = True
                rest, args = args[position:], args[:position]
                bound.args.extend(rest)
                bound.arg_names.extend(f"*{name}[{i}]" for i in range(len(rest)))
                continue
            if position < len(args):
                assert name not in kwargs, f"Parameter {name} was passed more than once"
                value = args[position]
            elif name in kwargs:
                value = kwargs[name]
            elif parameter.default is not inspect.Parameter.empty:
                value = parameter.default
            else:
                raise createPoptorchError(f"Mandatory parameter {name} missing")
            if after_variadic or parameter.kind == inspect.Parameter.KEYWORD_ONLY:
                bound.kwargs[name] = value
            else:
                bound.args.append(value)
                bound.arg_names.append(name)
        return bound


def _warn_of_dicts(values: Sequence[Any]) -> None:
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, (tuple, list)):
            waiting.extend(value)
        elif isinstance(value, dict):
            logger.warning(
                "Dicts as inputs only have partial support, they can be accessed using literal keys, but full Python "
                "functionality is not enabled. Consider changing dict inputs to tuple."
            )
            return


def micro_batches_per_host_step(options: Options) -> int:
    """Micro-batches along dimension 0 of every input: device iterations x accumulation x groups of replicas."""
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * groups * options.Training.gradient_accumulation)


def micro_batch_of(tensor: torch.Tensor, index: int, num_pieces: int, options: Options) -> torch.Tensor:
    """Piece `index` of dimension 0. A tensor without dimensions is passed whole.

    Raises AssertionError if the dimension is not a multiple of the number of pieces.
    """
    size = tensor.shape[0] if tensor.dim() else 1
    if size % num_pieces:
        raise AssertionError(
            f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({size}) must be a multiple "
            f"of Options.deviceIterations({options.device_iterations}) * "
            f"(Options.replicationFactor({options.replication_factor}) / "
            f"Options.inputReplicaGrouping.input_group_size({options.input_group_size})) * "
            f"Options.Training.gradientAccumulation({options.Training.gradient_accumulation}) = {num_pieces} because "
            "it is used to calculate the batch size which will be executed on the device in any given iteration. For "
            "a full explanation see the batching semantics page of the documentation."
        )
    if not tensor.dim():
        return tensor
    return tensor.narrow(0, index * (size // num_pieces), size // num_pieces)
