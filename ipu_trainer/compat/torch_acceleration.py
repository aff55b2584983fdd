"""torch's internals that accelerate training: hooks of modules, modules compiled in place, and cuDNN's attention."""

from __future__ import annotations

import importlib
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import nn

from ipu_trainer.compat.internals import Internal

_TESTS = "tests/training/test_"
_HOOKS_TEST = f"{_TESTS}stochastic_depth.py::test_hooks_of_every_kind_are_seen"
HOOKS = Internal(
    "torch.nn.Module._forward_hooks", "hooks have no public list; so for the other kinds", "2.0", "2.13", _HOOKS_TEST
)
GLOBAL_HOOKS = Internal(
    "torch.nn.modules.module._global_forward_hooks", "as HOOKS, of all modules", "2.0", "2.13", _HOOKS_TEST
)
COMPILED_CALL = Internal(
    "torch.nn.Module._compiled_call_impl",
    "Module.compile() sets it, and nothing public reads, replaces or removes it",
    "2.2",
    "2.13",
    f"{_TESTS}compiled_layers.py::test_compiled_layers_compute_the_same_and_leave_no_trace",
)
RECOMPILE_LIMIT = Internal(
    "torch._dynamo.config.recompile_limit",
    "older releases do not have it in torch.compiler.config, and call it cache_size_limit",
    "2.2",
    "2.13",
    f"{_TESTS}fused_layers.py::test_smaller_batches_and_evaluations_in_between_are_compiled_too",
)
CUDNN_ATTENTION = Internal(
    "torch.ops.aten._scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention() does not return the log-sum-exps that a backward kernel reads",
    "2.6",
    "2.13",
    f"{_TESTS}fused_kernels.py::test_the_gpus_attention_is_as_exact_as_the_librarys",
)


def forward_hooks(module: nn.Module) -> List[Any]:
    """The module's forward hooks, in the order in which they are called."""
    return list(module._forward_hooks.values())


def has_hooks(module: nn.Module, apart_from: Tuple[type, ...] = ()) -> bool:
    """Whether a hook of any kind, forward or backward, is registered on the module. Types in `apart_from` do not count."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not isinstance(hook, apart_from) for hooks in kinds for hook in hooks.values())


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules."""
    of_all = nn.modules.module
    return bool(
        of_all._global_forward_hooks
        or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
    )


def compiled_call(module: nn.Module) -> Optional[Callable[..., Any]]:
    """What replaces the module's forward and hooks when it is called; None for a module that is not compiled."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Optional[Callable[..., Any]]) -> None:
    module._compiled_call_impl = call


def recompile_limit(at_least: int) -> Any:
    """Context manager: inside the block torch compiles at least so many variants of a function before it gives up."""
    public = getattr(getattr(torch, "compiler", None), "config", None)
    has_limit = hasattr(public, "recompile_limit")
    config: Any = public if has_limit else importlib.import_module("torch._dynamo.config")
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return config.patch(name, max(at_least, getattr(config, name)))


def has_cudnn_attention() -> bool:
    return hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention") and CUDNN_ATTENTION.is_known()


def cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale Q K^T) V, (batch, heads, tokens, head_dim) as its arguments, and log-sum-exps of the scores."""
    output, log_sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, scale=scale
    )
    return output, log_sums
