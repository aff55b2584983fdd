"""poptorch.custom_op, with Python functions in place of operators that the SDK loads from a compiled library.

    register_custom_op("LeakyRelu", "com.acme", lambda x, alpha: torch.nn.functional.leaky_relu(x, alpha))

The function gets the inputs in order and the attributes by name, and returns a tensor or several. It must be
differentiable, or a torch.autograd.Function, if the model is trained.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.errors import createPoptorchError

AttributeValue = Union[float, int, str, List[Any], Tuple[Any, ...]]
_registry: Dict[Tuple[str, str], Callable[..., Any]] = {}


def register_custom_op(name: str, domain: str, function: Callable[..., Any]) -> None:
    """Use `function` for custom_op(..., name, domain, ...). Replaces what was registered before."""
    _registry[domain, name] = function


def custom_op(
    inputs: Sequence[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[torch.Tensor],
    attributes: Optional[Dict[str, AttributeValue]] = None,
) -> List[torch.Tensor]:
    """Call a registered operator. Returns a list of as many tensors as there are example outputs.

    Raises ValueError for attributes that the device cannot hold, Error if the operator is not registered or returns
    another number of tensors.
    """
    attributes = {} if attributes is None else attributes
    for key, value in attributes.items():
        _check_attribute(key, value)
    function = _registry.get((domain, name))
    if function is None:
        known = ", ".join(f"{d}.{n}" for d, n in sorted(_registry)) or "none"
        raise createPoptorchError(
            f"custom operator {name} of domain {domain} has no Python version here (registered: {known}). Give one "
            f"with ipu_trainer.simulator.register_custom_op({name!r}, {domain!r}, function)."
        )
    outputs = function(*inputs, **attributes)
    listed = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    if len(listed) != len(example_outputs):
        raise createPoptorchError(
            f"custom operator {name} returned {len(listed)} tensors where {len(example_outputs)} example outputs "
            "were given"
        )
    return listed


def _check_attribute(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise UserError("All attribute keys must be strings.")
    if not isinstance(value, (float, int, str, list, tuple)):
        raise UserError("Attribute values must be floats, ints, strings or a list/tuple of float, ints of strings.")
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if any(not isinstance(item, type(items[0])) for item in items):
        raise UserError("The types in a list/tuple attribute must all be the same.")
    for text in [key, *items]:
        if isinstance(text, str) and not text.isascii():
            raise UserError(f"{text} contains non-ASCII characters.")
    for number in items:
        if isinstance(number, float) and torch.finfo(torch.float32).max < abs(number) < float("inf"):
            side = "low" if number < 0 else "high"
            raise UserError(f"{number:g} is too {side} for a Popart float attribute.")
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise UserError(f"{number} is out of range for a Popart integer attribute.")
