"""Functions that a program wants called around the compiling of every model."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Dict

import torch

pre_compile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()
post_compile_hooks: Dict[int, Callable[[], Any]] = OrderedDict()


def _register(hooks: Dict[int, Callable[[], Any]], hook: Callable[[], Any]) -> Any:
    handle = torch.utils.hooks.RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], Any]) -> Any:
    """Call `hook` before every compiling from now on. Returns a handle with remove()."""
    if not callable(hook):
        raise RuntimeError("Pre-compile hook must be callable")
    return _register(pre_compile_hooks, hook)


def registerPostCompileHook(hook: Callable[[], Any]) -> Any:
    """Call `hook` after every compiling from now on. Returns a handle with remove()."""
    if not callable(hook):
        raise RuntimeError("Post-compile hook must be callable")
    return _register(post_compile_hooks, hook)
