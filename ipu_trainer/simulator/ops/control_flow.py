"""Loops, branches and layers on the host inside a model.

On the device the number of iterations is fixed, both branches are compiled, and only inference may have either. Here they run
in Python, under the same rules.
"""

from __future__ import annotations

from typing import Any, Callable, List

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator.errors import compiler_error, createPoptorchError
from ipu_trainer.simulator.forward.context import context, on_host
from ipu_trainer.simulator.forward.observer import CompilationObserver


def for_loop(count: int, body: Callable[..., Any], inputs: List[torch.Tensor]) -> List[torch.Tensor]:
    """body(*inputs) gives the inputs of the next iteration; returns what the last of `count` gives, as a list.

    The inputs are passed by value: the body may change them in place. Raises ValueError unless inputs is a list of
    tensors, Error in training or if the body returns another number of tensors than it takes.
    """
    prefix = "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. "
    if not isinstance(inputs, list):
        raise UserError(prefix + "(Object is not list)")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(prefix + f"(Object contained in list at index {index} is not torch.tensor)")
    _refuse_training("for_loop")
    values = [tensor.clone() for tensor in inputs]
    for _ in range(count):
        results = _as_list(body(*values))
        if len(results) != len(values):
            raise createPoptorchError(
                f"poptorch.for_loop: the body takes {len(values)} tensors and returned {len(results)}; it must return "
                "as many, since they are the next iteration's inputs."
            )
        values = [result.clone() for result in results]
    return values


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: List[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: List[torch.Tensor],
) -> List[torch.Tensor]:
    """then_body(*then_inps) where the condition, a tensor of one boolean, is true, else else_body(*else_inps).

    Always a list. Raises ValueError unless the inputs are lists, Error in training or if the bodies return different
    numbers of tensors.
    """
    if not isinstance(then_inps, list) or not isinstance(else_inps, list):
        raise UserError(
            "poptorch.cond expects then_inps and else_inps tensors to be a list of tensors. (Object is not list)"
        )
    _refuse_training("cond")
    if isinstance(context.observer, CompilationObserver):  # both branches are compiled, whichever runs later
        num_then = len(_as_list(then_body(*[t.clone() for t in then_inps])))
        num_else = len(_as_list(else_body(*[t.clone() for t in else_inps])))
        if num_then != num_else:
            raise createPoptorchError(
                f"poptorch.cond: both bodies must return as many tensors, but then_body returned {num_then} and "
                f"else_body {num_else}."
            )
    return _as_list(then_body(*then_inps) if bool(condition) else else_body(*else_inps))


class CPU:
    """Runs a layer on the host, in the middle of a model that is on the device. Inference only."""

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self._layer_to_call = layer_to_call
        if isinstance(layer_to_call, torch.nn.Module):
            layer_to_call.requires_grad_(False)
        self._ID = ID

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        _refuse_training("CPU")
        with on_host():
            return self._layer_to_call(*input, **kwargs)


def _refuse_training(what: str) -> None:
    if context.on_ipu and context.training:
        raise compiler_error(f"poptorch.{what}() is only supported in inference.")


def _as_list(result: Any) -> List[torch.Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]
