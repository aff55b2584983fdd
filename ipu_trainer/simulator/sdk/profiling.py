"""poptorch.profiling: trace points of the SDK's profiler, without effect. See `ipu-trainer simulate --trace`."""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager


class Channel:
    """A named series of trace points."""

    def __init__(self, name: str) -> None:
        self.name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """`obj`, unchanged."""
        return obj

    def tracepoint(self, name: str) -> ContextManager[None]:
        """A context that records nothing."""
        return contextlib.nullcontext()
