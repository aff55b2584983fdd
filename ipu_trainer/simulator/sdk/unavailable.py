"""Public names of poptorch that need its C++ libraries, each with the reason why it is refused."""

from __future__ import annotations

from typing import Any, Callable, Dict

# name -> why it cannot be simulated, and what to do instead
REASONS: Dict[str, str] = {
    "accessAttributes": "the C++ compiler calls it to fetch attributes of custom operators; attributes reach a Python "
    "operator as arguments (see register_custom_op)",
    "getIpuTensorId": "tensors have no identity in an SDK graph here; use id()",
    "importPoptorchMetadataFromFile": "the file format is the SDK's; use load() for files of the simulator's save()",
    "registerGeometricCustomArgParsers": "it serves poptorch_geometric, which needs the SDK; give the parsers of your "
    "classes to registerCustomArgParser()",
}


def _refusal(name: str) -> Callable[..., Any]:
    reason = REASONS[name]

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"poptorch.{name}: {reason}.")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Raises NotImplementedError: {reason}."
    return refuse


accessAttributes = _refusal("accessAttributes")
getIpuTensorId = _refusal("getIpuTensorId")
importPoptorchMetadataFromFile = _refusal("importPoptorchMetadataFromFile")
registerGeometricCustomArgParsers = _refusal("registerGeometricCustomArgParsers")
