"""The same micro-batches of the data computed one by one and together, and how far apart their gradients are.

It runs before the first update and changes nothing of the training: weights, buffers, random generators and arguments are
afterwards what they were.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from torch import nn

from ipu_trainer.training.coalescing import Comparison, relative_difference
from ipu_trainer.training.state.undisturbed_model import undisturbed

# Gradients by parameter, and bytes that autograd keeps for the backward pass of the first batch.
Measured = Tuple[Dict[str, torch.Tensor], int]


def compare_gradients(
    model: nn.Module, args: Any, measure: Callable[[int, int], Measured], count: int, factor: int
) -> Comparison:
    """`count` micro-batches one by one and in passes of `factor`, in all processes.

    measure(count, factor): gradients of the first `count` micro-batches in such passes.
    """
    apart: Dict[str, torch.Tensor] = {}
    together: Dict[str, torch.Tensor] = {}
    failed, bytes_of_one = "", 0
    with _without_dropout(model), undisturbed(model):
        try:
            apart, bytes_of_one = measure(count, 1)
            together, _ = measure(count, factor)
        except BufferChanged as found:
            failed = f"each micro-batch changes a buffer of the model ({found})"
        except torch.cuda.OutOfMemoryError:
            failed = f"{factor} micro-batches together are out of memory"
        except (ValueError, RuntimeError, StopIteration) as error:
            failed = f"{factor} micro-batches together fail ({type(error).__name__}: {str(error)[:120]})"
    model.zero_grad(set_to_none=True)
    failed = _failed_anywhere(failed, args)
    if failed:
        return Comparison(float("inf"), bytes_of_one, failed)
    for gradients in (apart, together):
        _mean_over_processes(gradients, args)
    return Comparison(relative_difference(apart, together), bytes_of_one)


class BufferChanged(Exception):
    """A forward pass changed a buffer of the model, so that micro-batches are not independent of each other."""


def gradients_of(model: nn.Module, batches: List[Any], step: Callable[[Any], Any]) -> Measured:
    """Accumulated gradients of step(batch) over some batches, in float32. Raises BufferChanged."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    kept = 0
    for number, inputs in enumerate(batches):
        if number:
            step(inputs)
        else:
            with _saved_bytes(model) as counter:
                step(inputs)
            kept = counter[0]
    for name, buffer in model.named_buffers():
        if name in buffers and not torch.equal(buffers[name], buffer):
            raise BufferChanged(name)
    gradients = {
        name: parameter.grad.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients, kept


def _failed_anywhere(failed: str, args: Any) -> str:
    """What failed here, or that something did in another process: all processes decide alike."""
    if args.world_size == 1:
        return failed
    good = torch.tensor(0 if failed else 1, device=args.device)
    torch.distributed.all_reduce(good, op=torch.distributed.ReduceOp.MIN)
    return failed or ("" if int(good) else "it failed in another process")


def least_of_processes(factor: int, args: Any) -> int:
    """The smallest factor that a process found: GPUs may differ in memory."""
    if args.world_size == 1:
        return factor
    least = torch.tensor(factor, device=args.device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return int(least)


def _mean_over_processes(gradients: Dict[str, torch.Tensor], args: Any) -> None:
    """Processes share out samples by passes, so only all of them together saw the same samples both times."""
    if args.world_size > 1:
        for name in sorted(gradients):
            torch.distributed.all_reduce(gradients[name])
            gradients[name] /= args.world_size


@contextlib.contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[List[int]]:
    """Counts bytes of tensors that autograd keeps, each storage once, parameters apart."""
    counter = [0]
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counter[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counter


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside the block all dropout rates of the model's modules and configuration are 0."""
    rates: List[Tuple[Any, str, float]] = [
        (owner, name, value)
        for owner in (*model.modules(), getattr(model, "config", None))
        for name, value in (vars(owner).items() if owner is not None else ())
        if isinstance(value, float)
        and value
        and ("drop" in name or (name == "p" and "Dropout" in type(owner).__name__))
    ]
    try:
        for owner, name, _ in rates:
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, value in rates:
            setattr(owner, name, value)
