"""Modules compiled in place, and taken back."""

from __future__ import annotations

import importlib
from typing import Any, Callable, Optional

from torch import nn

from ipu_trainer.compat.internals import Internal

COMPILED_CALL = Internal(
    "torch.nn.Module._compiled_call_impl",
    "Module.compile() sets it, and nothing public reads, replaces or removes it",
    "2.2",
    "2.13",
    "tests/training/test_compiled_layers.py::test_compiled_layers_compute_the_same_and_leave_no_trace",
)
RECOMPILE_LIMIT = Internal(
    "torch._dynamo.config.recompile_limit",
    "torch.compiler.config has it in newer releases; before 2.6 it is called cache_size_limit",
    "2.2",
    "2.13",
    "tests/training/test_fused_layers.py::test_smaller_batches_and_evaluations_in_between_are_compiled_too",
)


def compiled_call(module: nn.Module) -> Optional[Callable[..., Any]]:
    """What is called in place of the module's forward and hooks; None for a module that is not compiled."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Optional[Callable[..., Any]]) -> None:
    module._compiled_call_impl = call


def recompile_limit(at_least: int) -> Any:
    """Context manager: inside the block torch compiles one function for so many kinds of arguments before it gives up."""
    config: Any = importlib.import_module("torch._dynamo.config")
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return config.patch(name, max(at_least, getattr(config, name)))
