"""The torch functions that a forward calls: losses in every run, and during compilation everything that an IPU would refuse.

poptorch builds a graph and searches it. Here forward runs in eager PyTorch under a TorchFunctionMode: one Python call for each
torch function, and nothing is patched. A TorchDispatchMode would also see backward, at several times the cost, and would see
operators where losses are functions.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch.overrides import TorchFunctionMode

from ipu_trainer.compat.torch_operators import functions_named
from ipu_trainer.compat.torch_workarounds import ensure_contiguous_gradient
from ipu_trainer.simulator.errors import compiler_error
from ipu_trainer.simulator.forward import readiness
from ipu_trainer.simulator.forward.context import context
from ipu_trainer.simulator.forward.placement_log import PlacementLog
from ipu_trainer.simulator.numerics import mixed_types

_LOSS_NAMES = (
    "nll_loss",
    "cross_entropy",
    "cross_entropy_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "kl_div",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "soft_margin_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "multi_margin_loss",
    "cosine_embedding_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "ctc_loss",
)


LOSS_FUNCTIONS = functions_named(*_LOSS_NAMES)


class ForwardObserver(TorchFunctionMode):
    """Records the losses that forward computes, in order, and replaces device "ipu" by the simulator's torch device."""

    def __init__(self, device: torch.device, mixed: bool = False) -> None:
        """mixed: the model has float16 tensors, so that those and float32 ones may meet."""
        super().__init__()
        self.losses: List[torch.Tensor] = []
        self._device = device
        self._mixed = mixed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if kwargs is None:
            kwargs = {}
        elif "device" in kwargs and _is_ipu(kwargs["device"]):
            kwargs = {**kwargs, "device": self._device}
        if len(args) > 1 and (type(args[1]) is str or type(args[1]) is torch.device) and _is_ipu(args[1]):
            args = (args[0], self._device, *args[2:])
        result = mixed_types.call(func, args, kwargs) if self._mixed else func(*args, **kwargs)
        ensure_contiguous_gradient(func, result)
        if func in LOSS_FUNCTIONS:
            self.losses.append(result)
        return result


class CompilationObserver(ForwardObserver):
    """Also makes the checks of compilation.

    variables: the model's parameters and buffers, as it holds them.
    findings: see readiness. used_inputs: ids of the inputs that were an argument of any torch function.
    overlapped_*: what set_overlap_for_* was called with, and for outputs what it returned.
    """

    def __init__(
        self,
        device: torch.device,
        inputs: Sequence[torch.Tensor],
        variables: Sequence[torch.Tensor],
        placement: Optional[PlacementLog] = None,
    ) -> None:
        super().__init__(device, mixed=True)
        self._placement = placement
        self.saw_half = False
        self.inputs = list(inputs)
        self.findings: List[readiness.UnsupportedUse] = []
        self.used_inputs: Set[int] = set()
        self.overlapped_inputs: List[torch.Tensor] = []
        self.overlapped_outputs: List[Tuple[torch.Tensor, torch.Tensor]] = []
        self.in_multi_conv = False
        self.num_convolutions = 0
        self._input_ids = {id(tensor) for tensor in inputs}
        self._on_device = self._input_ids | {id(tensor) for tensor in variables}

    def overlap_input(self, tensor: torch.Tensor) -> torch.Tensor:
        """Record the hint and return a new tensor for the model. The hint does not count as a use of the input."""
        self.overlapped_inputs.append(tensor)
        used_before = id(tensor) in self.used_inputs
        marked = tensor.view_as(tensor)
        if not used_before:
            self.used_inputs.discard(id(tensor))
        return marked

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__getitem__":
            self._check_dynamic_slices(args[0], args[1])
        if (
            name in ("cross_entropy", "nll_loss")
            and kwargs.get("weight", args[2] if len(args) > 2 else None) is not None
        ):
            aten = {"cross_entropy": "cross_entropy_loss", "nll_loss": "nll_loss_nd"}[name]
            raise compiler_error(f'Parameter "weight" is unsupported for aten::{aten}')
        if args and isinstance(args[0], torch.Tensor) and not args[0].numel() and not name.startswith("__"):
            raise compiler_error(f"Zero-sized tensors are unsupported (Got shape {list(args[0].shape)})")
        if name == "interpolate" and kwargs.get("mode", "nearest") in ("linear", "trilinear", "area"):
            raise compiler_error(f"interpolate: mode {kwargs['mode']!r}: only 'nearest' is supported and 'bicubic'")
        if name == "one_hot" and kwargs.get("num_classes", args[1] if len(args) > 1 else -1) == -1:
            raise compiler_error("OneHot num classes must be specified and must be constant.")
        if name == "bincount" and not kwargs.get("minlength", args[2] if len(args) > 2 else 0):
            raise compiler_error(
                "Bincount `minlength` must be specified and must be a constant. On the IPU MK2 platform the minimum "
                "length is also the maximum length"
            )
        if name == "ctc_loss" and kwargs.get("reduction") == "none":
            raise compiler_error('CTCLoss with reduction="none" is currently not supported')
        if name.startswith("conv") and name[4:5] in ("1", "2", "3", "_"):
            self.num_convolutions += 1
        result = super().__torch_function__(func, types, args, kwargs)
        finding = readiness.inspect_call(func, args, kwargs, result)
        if finding is not None and finding not in self.findings:
            self.findings.append(finding)
        self._mark_constant(name, args, kwargs, result)
        if isinstance(result, torch.Tensor) and name != "__get__":
            self.saw_half = self.saw_half or result.dtype == torch.float16
            if self._placement is not None and context.blocks is not None and context.blocks.active is not None:
                self._placement.record(name, context.blocks.active)
            if context.blocks is not None and context.blocks.ended:
                raise compiler_error(
                    f"No active Block, all the ops must belong to a Block: {name} runs after the end of a "
                    "poptorch.Block. Extend the block, or begin another one."
                )
            self.used_inputs.update(id(a) for a in args if isinstance(a, torch.Tensor) and id(a) in self._input_ids)
        return result

    def _mark_constant(self, name: str, args: Sequence[Any], kwargs: Dict[str, Any], result: Any) -> None:
        """Mark results of no tensor, or of constants alone, as constants: the compiler knows their values."""
        given = [*args, *kwargs.values()]
        given += [item for value in given if isinstance(value, (list, tuple)) for item in value]
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        constant = not name.startswith("rand") and all(self._is_constant(tensor) for tensor in tensors)
        changed = args[0] if name == "__setitem__" and not constant else result
        for part in changed if isinstance(changed, (list, tuple)) else (changed,):
            if isinstance(part, torch.Tensor) and (constant or self._is_constant(part)):
                part.ipu_constant = constant  # type: ignore[attr-defined]

    def _is_constant(self, tensor: torch.Tensor) -> bool:
        """A tensor that no function returned and that is not the model's comes from outside, or from sizes."""
        return bool(getattr(tensor, "ipu_constant", id(tensor) not in self._on_device))

    def _check_dynamic_slices(self, tensor: torch.Tensor, index: Any) -> None:
        """The size of a slice between two tensors must divide the dimension."""
        for dim, item in enumerate(index if isinstance(index, tuple) else (index,)):
            if not isinstance(item, slice) or not all(isinstance(end, torch.Tensor) for end in (item.start, item.stop)):
                continue
            if self._is_constant(item.start) and self._is_constant(item.stop):
                continue
            size = int(item.stop) - int(item.start)
            check_slice_size(size, tensor.shape[dim] if dim < tensor.dim() else size)


def final_loss(losses: Sequence[torch.Tensor]) -> int:
    """The index of the loss that no other loss is computed from: where backward starts.

    Raises Error if there is none, or more than one. A loss that requires no gradient is connected to nothing, and
    counts only if no other does.
    """
    if not losses:
        raise compiler_error("Couldn't find a loss in graph!")
    candidates = [i for i, loss in enumerate(losses) if loss.grad_fn is not None] or list(range(len(losses)))
    below = {i: _ancestors(losses[i]) for i in candidates}
    final = [i for i in candidates if not any(losses[i].grad_fn in below[j] for j in candidates if j != i)]
    if len(final) != 1:
        raise compiler_error(
            "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
            f"poptorch.identity_loss. (Losses computed: {len(losses)}, independent ones: {len(final)}.)"
        )
    return final[0]


def _ancestors(loss: torch.Tensor) -> Set[Any]:
    seen: Set[Any] = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return seen - {loss.grad_fn}


def check_slice_size(size: int, dimension: int = 0) -> None:
    """Raise Error for a dynamic slice that is empty or reversed, or that on the device does not divide `dimension`."""
    if size == 0:
        raise compiler_error("The start and end of a slice must be different.")
    if size < 0:
        raise compiler_error("Taking a slice of a tensor with the end less than the start is not supported.")
    if context.on_ipu and dimension % size != 0:
        raise compiler_error(f"The size of the slice ({size}) must be a factor of the slicing dimension ({dimension}).")


def _is_ipu(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "ipu"
    return isinstance(device, str) and device.split(":")[0] == "ipu"
