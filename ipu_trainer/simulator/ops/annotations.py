"""Block, BeginBlock and the other annotations of a model. None of them changes a value.

Off the device they do nothing, so that an annotated model stays an ordinary PyTorch model: it can be run, saved, copied and
loaded wherever poptorch or the simulator can be imported.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

import torch

from ipu_trainer.compat.torch_modules import forward_pre_hooks
from ipu_trainer.errors import UserError
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.forward.context import context


class Block(torch.nn.Module):
    """What runs inside `with poptorch.Block(user_id, ipu_id=...)` belongs to that block."""

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    @staticmethod
    def useAutoId() -> None:
        """Number blocks without an id from 0 again. Call it at the start of forward."""
        if context.blocks is not None:
            context.blocks.resolver.resetAutoId()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """What runs from here on, up to the next annotation, belongs to this block."""
        if context.blocks is not None:
            context.blocks.begin(user_id, ipu_id)

    def __enter__(self) -> None:
        Block.start(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if context.blocks is not None:
            context.blocks.ended = True


class LegacyBeginBlockFn(torch.nn.Module):
    """BeginBlock of a plain function: a module that begins a block and calls the function."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: Optional[str] = None, ipu_id: Optional[int] = None
    ) -> None:
        super().__init__()
        self._user_id = user_id
        self._layer_to_call = layer_to_call
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        if context.blocks is not None:
            context.blocks.begin(self._user_id, self._ipu_id, owner=self)
        return self._layer_to_call(*input, **kwargs)


class _BlockHook:
    """The forward pre-hook that BeginBlock registers. A class, so that annotated models can be pickled."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, input: Any) -> None:
        if context.blocks is not None:
            context.blocks.begin(self._user_id, self._ipu_id, owner=module)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def BeginBlock(layer_to_call: Any, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> torch.nn.Module:
    """Begin a block whenever the module is called. Changes the module in place, and returns it.

    Raises Error for what is neither a module nor callable, and for a module that begins a block already.
    """
    if not isinstance(layer_to_call, torch.nn.Module):
        if callable(layer_to_call):
            return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
        raise createPoptorchError("module is not an instance of torch.nn.Module or function.")
    if any(isinstance(hook, _BlockHook) for hook in forward_pre_hooks(layer_to_call).values()):
        raise createPoptorchError("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def BlockFunction(
    user_id: Optional[str] = None, ipu_id: Optional[int] = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the body of the function is a block."""

    def decorator(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return func(*args, **kwargs)

        return wrapper

    return decorator


def removeBlocks(module: torch.nn.Module) -> None:
    """Undo every BeginBlock in the module and below."""
    assert isinstance(module, torch.nn.Module)
    for submodule in module.modules():
        hooks = forward_pre_hooks(submodule)
        for number in [number for number, hook in hooks.items() if isinstance(hook, _BlockHook)]:
            del hooks[number]


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Stash these tensors, and recompute what follows them. Takes tensors, or one tuple or list; returns the same kind.

    Raises ValueError for what is not a tensor.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        marked = recomputationCheckpoint(*tensors[0])
        return type(tensors[0])(marked if isinstance(marked, tuple) else (marked,))
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise UserError("All inputs must be tensors")
    if context.blocks is not None:
        context.blocks.checkpoint(tensors)
    return tensors[0] if len(tensors) == 1 else tensors


class NameScope:
    """Names operators in the SDK's reports. There are none here, so only the argument is checked."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), "Parameter to NameScope must be a string"
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass
