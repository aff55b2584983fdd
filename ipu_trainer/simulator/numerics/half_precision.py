"""float16 as on the device: stored in float16, computed in float32, rounded after each operator. And its exceptions.

Releases of PyTorch differ in their CPU kernels for float16. Where one is missing, the float32 kernel computes and the result is
rounded. Where a kernel exists, it rounds at the same place.
"""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Iterable, List, Optional, Sequence, Set

import torch

from ipu_trainer.compat.torch_operators import TorchDispatchMode, operator_arguments, operator_name
from ipu_trainer.simulator.errors import compiler_error

_MISSING = "not implemented for 'Half'"
_COMPARISONS = frozenset(["gt", "ge", "lt", "le", "eq", "ne", "maximum", "minimum"])


def round_stochastically(values: torch.Tensor, generator: Optional[torch.Generator] = None) -> torch.Tensor:
    """float32 to float16, to one of the two neighbours, each with a probability that makes the mean exact.

    Values that float16 holds exactly are unchanged; beyond its range the result is infinite.
    """
    _, exponent = torch.frexp(values)
    # The gap between neighbours: 2^-10 of the leading power of two, which is at least 2^-14 (then subnormal).
    gap = torch.ldexp(torch.ones_like(values), (exponent - 1).clamp(min=-14) - 10)
    in_gaps = values / gap
    below = in_gaps.floor()
    up = torch.rand(values.shape, generator=generator, device=values.device) < in_gaps - below
    return ((below + up) * gap).to(torch.float16)


def stored_as(
    values: torch.Tensor, dtype: torch.dtype, stochastic: bool = False, generator: Optional[torch.Generator] = None
) -> torch.Tensor:
    """`values` as the device stores them in `dtype`."""
    if dtype == torch.float16 and stochastic and values.dtype == torch.float32:
        return round_stochastically(values, generator)
    return values.to(dtype)


class HalfInFloat(TorchDispatchMode):
    """Computes in float32 what PyTorch has no float16 kernel for on this device, forward and backward."""

    _missing: ClassVar[Set[Any]] = set()  # operators found to have no kernel, in any model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._missing:
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                if _MISSING not in str(error):
                    raise
                self._missing.add(func)
        if not any(t.dtype == torch.float16 for t in _tensors(args, kwargs)):
            return func(*args, **kwargs)
        return _in_float(func, args, kwargs)


def _in_float(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    mixed = any(t.dtype == torch.float32 for t in _tensors(args, kwargs))
    wide_args: List[Any] = [_widened(value) for value in args]
    wide_kwargs = {name: _widened(value) for name, value in kwargs.items()}
    result = func(*wide_args, **wide_kwargs)
    written = [
        (given, wide)
        for argument, given, wide in _arguments(func, args, wide_args, kwargs, wide_kwargs)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    for given, wide in written:
        if given is not wide and isinstance(given, torch.Tensor):
            given.copy_(wide)
    originals = {id(wide): given for given, wide in written}

    def narrowed(position: int, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in originals:
            return originals[id(value)]
        keep = value.dtype != torch.float32 or (mixed and position > 0)
        return value if keep else value.to(torch.float16)

    if isinstance(result, (tuple, list)):
        return type(result)(narrowed(i, value) for i, value in enumerate(result))
    return narrowed(0, result)


def _arguments(func: Any, args: Sequence[Any], wide: Sequence[Any], kwargs: Any, wide_kwargs: Any) -> Iterable[Any]:
    schema = operator_arguments(func)
    yield from zip(schema, args, wide)
    for argument in schema:
        if argument.name in kwargs:
            yield argument, kwargs[argument.name], wide_kwargs[argument.name]


def _widened(value: Any) -> Any:
    """An argument of an operator, float32 in place of float16: of tensors, of lists of them, and as a dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float32) if value.dtype == torch.float16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(item) for item in value)
    return torch.float32 if value is torch.float16 else value


class FloatingPointChecks(TorchDispatchMode):
    """Raises Error where an operator makes an infinity out of finite numbers, or a NaN out of numbers, or compares one.

    For enableFloatingPointExceptions(True). Checks every value: slow.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in _tensors(args, kwargs) if t.is_floating_point()]
        numbers = [a for a in [*args, *kwargs.values()] if isinstance(a, float)]
        name = operator_name(func)
        had_nan = any(bool(t.isnan().any()) for t in given) or any(n != n for n in numbers)
        had_infinity = any(bool(t.isinf().any()) for t in given) or any(abs(n) == float("inf") for n in numbers)
        result = func(*args, **kwargs)
        made = [t for t in _tensors([result], {}) if t.is_floating_point()]
        if name.startswith("empty") or name in ("new_empty", "new_empty_strided"):
            return result  # memory not written yet
        if had_nan and name in _COMPARISONS:
            raise compiler_error(f"floating point exception: invalid operation, {name} of NaN")
        if not had_nan and any(bool(t.isnan().any()) for t in made):
            raise compiler_error(f"floating point exception: invalid operation, {name} gave NaN")
        if not had_infinity and any(bool(t.isinf().any()) for t in made):
            raise compiler_error(f"floating point exception: division by zero or overflow in {name}")
        return result


def _tensors(args: Sequence[Any], kwargs: Dict[str, Any]) -> List[torch.Tensor]:
    found: List[torch.Tensor] = []
    for value in [*args, *kwargs.values()]:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, torch.Tensor))
    return found
