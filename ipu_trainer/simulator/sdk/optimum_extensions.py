"""Python versions of what optimum-graphcore 0.7.1 builds from C++ with the SDK.

Importing its quantization, or asking it for the SDK's hash, runs a C++ compiler with Poplar's headers. install()
replaces the functions of these two modules; the operators come from the registry of custom_ops.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ipu_trainer.simulator.ops.custom_ops import register_custom_op

# module that optimum-graphcore would build or build with -> its functions here
COMPILED = "optimum.graphcore.custom_ops.sdk_version_hash.sdk_version_hash_lib"
REPLACED = {
    COMPILED: ("sdk_version_hash",),
    "optimum.graphcore.custom_ops.utils": ("load_lib",),
}


def sdk_version_hash() -> str:
    """The simulator's name in place of the SDK's hash."""
    return "simulator"


def load_lib(filepath: str, timeout: int = 300) -> Any:
    """Compiles nothing: the file's operators are the registered Python ones.

    Raises FileNotFoundError if there is no such file, as compiling it would.
    """
    if not os.path.exists(filepath):
        raise FileNotFoundError(f"File does not exist: {filepath}")


def fast_gather_last_dim(data: torch.Tensor, index: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """torch.gather along the last dimension."""
    return torch.gather(data, axis, index.to(torch.int64))


def group_quantize_decompress(
    packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, root_path: str = ""
) -> torch.Tensor:
    """4-bit numbers in groups, to floats: number x scale + bias.

    packed (rows, groups, words) holds four numbers in each 16-bit word, and blocks of four words hold first the low
    nibbles of the four, then the next nibbles, and so on. scale and bias (rows, groups, 1).
    Returns (rows, groups x words x 4) in the type of scale.
    """
    rows, groups, words = packed.shape
    bits = (packed.to(torch.int32) & 0xFFFF).reshape(rows, groups, words // 4, 1, 4)
    shifts = torch.arange(0, 16, 4, device=packed.device, dtype=torch.int32).reshape(4, 1)
    numbers = ((bits >> shifts) & 0xF).reshape(rows, groups, words * 4)
    return (numbers.to(scale.dtype) * scale + bias).reshape(rows, groups * words * 4)


register_custom_op("FastGatherLastDim", "poptorch.custom_ops", fast_gather_last_dim)
register_custom_op("GroupQuantizeDecompress", "optimum.custom_ops", group_quantize_decompress)
