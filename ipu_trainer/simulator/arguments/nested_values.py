"""Nested arguments and results: their tensors in order, and the same nesting around other tensors.

torch.utils._pytree does something close, but knows nothing of Transformers' ModelOutput (a dictionary subclass) or of
the parsers that programs register, and its order of dictionaries differs per version.
"""

from __future__ import annotations

import abc
from typing import Any, Dict, Iterator, List, Optional, Sequence, Type

import torch

from ipu_trainer.simulator.errors import createPoptorchError


class ICustomArgParser(abc.ABC):
    """Takes apart and rebuilds values of a class that holds tensors."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Every tensor of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """A value like `original_structure` around tensors taken from the iterator, in the order of yieldTensors."""


custom_arg_parsers: Dict[Type[Any], ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: Type[Any], arg_parser: Optional[ICustomArgParser]) -> None:
    """Use `arg_parser` for arguments and results of this class and its subclasses; None forgets the present one."""
    if arg_parser is None:
        custom_arg_parsers.pop(arg_data_type, None)
    elif isinstance(arg_parser, ICustomArgParser):
        custom_arg_parsers[arg_data_type] = arg_parser
    else:
        raise createPoptorchError("arg_parser must inherit from ICustomArgParser")


def parser_for(value: Any) -> Optional[ICustomArgParser]:
    """The registered parser for the value's class, or for a base class of it."""
    if not custom_arg_parsers:
        return None
    exact = custom_arg_parsers.get(type(value))
    if exact is not None:
        return exact
    return next((parser for cls, parser in custom_arg_parsers.items() if isinstance(value, cls)), None)


def tensors_of(value: Any, like: Any = None) -> List[torch.Tensor]:
    """The tensors in `value`, depth first. Dictionaries are walked in the key order of `like` where it is given."""
    found: List[torch.Tensor] = []
    _collect(value, like, found)
    return found


def _collect(value: Any, like: Any, found: List[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    parser = parser_for(value)
    if parser is not None:
        found.extend(parser.yieldTensors(value))
    elif isinstance(value, dict):
        for key in value if like is None else like:
            _collect(value[key], None if like is None else like[key], found)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _collect(item, None if like is None else like[i], found)


def with_tensors(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """`value` with its tensors replaced, in the order of tensors_of; everything else is kept."""
    return _rebuild(value, iter(tensors))


def _rebuild(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return next(tensors)
    parser = parser_for(value)
    if parser is not None:
        return parser.reconstruct(value, tensors)
    if isinstance(value, dict):
        return type(value)({key: _rebuild(item, tensors) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [_rebuild(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") and hasattr(value, "_asdict") else type(value)(items)
    return value
