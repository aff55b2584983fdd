"""poptorch's operators of one tensor: losses, slices, products and hints to the compiler.

Hints (memory, overlap of transfers, serialization) do not change a value: they check what the device would refuse, and return
their argument.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ipu_trainer.errors import UserError
from ipu_trainer.simulator import enums
from ipu_trainer.simulator.arguments.nested_values import tensors_of, with_tensors
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.forward.context import context
from ipu_trainer.simulator.forward.observer import CompilationObserver, check_slice_size
from ipu_trainer.simulator.ops.printing import format_tensor


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mark a value as the loss. "sum" and "mean" reduce it to a scalar; "none" keeps it, every element counts fully."""
    if reduction == "sum":
        loss = x.sum()
    elif reduction == "mean":
        loss = x.mean()
    else:
        assert reduction == "none", "Unsupported reduction type!"
        loss = x.view_as(x)  # a new node in autograd's graph, to distinguish it from x
    if context.observer is not None:
        context.observer.losses.append(loss)
    return loss


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    require_tensor(tensor, "nop must take a torch.tensor argument.")
    return tensor.view_as(tensor)


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """Write the tensor to standard error whenever it is computed, and its gradient as "<title>_gradient".

    Returns the tensor. Off the device nothing is written.
    """
    require_tensor(tensor, "ipu print tensor must take a torch.tensor argument.")
    layout = (summarise_threshold, edge_items, max_line_width, digits, float_format, separator)

    def write(value: torch.Tensor, name: str) -> None:
        sys.stderr.write(f"{name}: " + format_tensor(value, *layout, open_bracket, close_bracket) + "\n")

    passed = tensor.view_as(tensor)
    if context.on_ipu and not isinstance(context.observer, CompilationObserver):
        write(tensor.detach(), title)
        if print_gradient and passed.requires_grad:
            passed.register_hook(lambda gradient: write(gradient.detach(), f"{title}_gradient"))
    return passed


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Hint: the share of memory that the operator which made the tensor may use."""
    require_tensor(tensor, "You may only set available memory for torch.tensor values.")
    if not 0 < available_memory_proportion <= 1:
        raise UserError(f"available_memory_proportion is {available_memory_proportion}; it must be in (0, 1]")
    return tensor


def set_overlap_for_input(input_tensors: Any, mode: enums.OverlapMode) -> Any:
    """Hint: transfer these inputs of the model while it computes. Takes tensors in any nesting and returns it."""
    tensors = _overlappable(input_tensors, "inputs")
    observer = context.observer
    if not isinstance(observer, CompilationObserver) or mode == enums.OverlapMode.NoOverlap:
        return input_tensors
    return with_tensors(input_tensors, [observer.overlap_input(tensor) for tensor in tensors])


def set_overlap_for_output(output_tensors: Any, mode: enums.OverlapMode) -> Any:
    """Hint: transfer these outputs of the model while it computes. Takes tensors in any nesting and returns it."""
    tensors = _overlappable(output_tensors, "outputs")
    marked = [tensor.view_as(tensor) for tensor in tensors]  # new tensors, to distinguish them from the originals
    if isinstance(context.observer, CompilationObserver) and mode != enums.OverlapMode.NoOverlap:
        context.observer.overlapped_outputs.extend(zip(tensors, marked))
    return with_tensors(output_tensors, marked)


def _overlappable(tensors: Any, kind: str) -> Any:
    found = tensors_of(tensors)
    if not found:
        raise createPoptorchError(
            f"You may only set overlap for torch.tensor {kind}. {type(tensors)} is not supported."
        )
    return found


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: enums.MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """lhs @ rhs, computed in `factor` pieces on the device to save memory."""
    assert isinstance(keep_precision, bool)
    assert isinstance(factor, int)
    assert isinstance(mode, enums.MatMulSerializationMode)
    return torch.matmul(lhs, rhs)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """`size` elements along `dim`, the first at `start`, which is a tensor of one integer, taking every step-th.

    On the device `size` must be a factor of the dimension: Error otherwise.
    """
    require_tensor(tensor, "dynamic_slice must take a torch.tensor input.")
    _require_integer(dim, "Dimension")
    require_tensor(start, "Slice start argument to dynamic_slice must be a torch.tensor.")
    _require_integer(size, "Size")
    _require_integer(step, "Step")
    if step < 1:
        raise createPoptorchError("Slicing step must be at least 1")
    check_slice_size(size, tensor.shape[dim])
    offsets = torch.arange(0, size, step, device=tensor.device)
    return torch.index_select(tensor, dim, _positions(start, offsets, tensor.shape[dim]))


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """`input` with `size` elements along `dim`, the first at `start`, replaced by `src`. `input` is not changed."""
    require_tensor(input, "dynamic_update must take a torch.tensor input.")
    _require_integer(dim, "Dimension")
    require_tensor(start, "Slice start argument to dynamic_update must be a torch.tensor.")
    require_tensor(src, "Src argument to dynamic_update must be a torch.tensor.")
    _require_integer(size, "Size")
    if input.dim() != src.dim():
        raise createPoptorchError(
            f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})"
        )
    if input.dtype != src.dtype:
        raise createPoptorchError(f"input and src tensor must have same dtype. ({_shown(input)} vs {_shown(src)})")
    check_slice_size(size)
    offsets = torch.arange(size, device=input.device)
    return input.index_copy(dim, _positions(start, offsets, input.shape[dim]), src)


def _positions(start: torch.Tensor, offsets: torch.Tensor, size: int) -> torch.Tensor:
    """Where a slice lies. On the device it wraps around: no index can be checked while a graph is built."""
    positions = start.reshape(()).to(offsets.dtype) + offsets
    return positions % size if context.on_ipu else positions


def require_tensor(value: Any, rule: str) -> None:
    """Raise Error with the rule and the value's type, unless it is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise createPoptorchError(f"{rule} {type(value)} is not supported.")


def _require_integer(value: Any, name: str) -> None:
    if not isinstance(value, int):
        raise createPoptorchError(f"{name} must be an integer.")


def _shown(tensor: torch.Tensor) -> torch.dtype:
    """The type on the device, where 64-bit types become 32-bit ones."""
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(tensor.dtype, tensor.dtype)
