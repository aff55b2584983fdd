"""The files of compileAndExport() and save(), for load() and loadExecutable(): one pickle.

They hold no executable, since compilation is quick: the arguments to compile for, the options, and usually the model, the
optimizer and the generators. As with every pickle: load only files that you trust.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any, List, Optional

import torch

from ipu_trainer.atomic import atomic_path
from ipu_trainer.simulator.arguments.call_arguments import BoundArguments
from ipu_trainer.simulator.arguments.nested_values import with_tensors
from ipu_trainer.simulator.enums import ConnectionType
from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.options.options import Options

_MAGIC = b"ipu_trainer simulator executable\n"
VERSION = 1


@dataclasses.dataclass
class ExecutableFile:
    """The contents. training, model and optimizer are None where the model was not exported."""

    inputs: BoundArguments
    options: Options
    training: Optional[bool] = None
    model: Optional[torch.nn.Module] = None
    optimizer: Optional[torch.optim.Optimizer] = None
    optimizer_state: Any = None
    rng_state: Optional[List[int]] = None
    version: int = VERSION


def write_executable(filename: str, contents: ExecutableFile) -> None:
    """Write atomically; creates the folder."""
    optimizer = contents.optimizer
    bound_state_dict = None if optimizer is None else optimizer.__dict__.pop("state_dict", None)
    try:
        data = _MAGIC + pickle.dumps(contents, protocol=4)
    finally:
        if optimizer is not None and bound_state_dict is not None:
            optimizer.__dict__["state_dict"] = bound_state_dict
    with atomic_path(filename) as temporary:
        temporary.write_bytes(data)


def read_executable(filename: str) -> ExecutableFile:
    """The contents of such a file, with options that can be changed.

    Raises Error for another kind of file or version.
    """
    with open(filename, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise createPoptorchError(f"Invalid file {filename}: not written by the simulator's save()")
        contents = pickle.load(file)
    if contents.version != VERSION:
        raise createPoptorchError(
            f"Invalid file {filename}: PopTorch version mismatch: File was created with version: {contents.version} "
            f"and this is version {VERSION}"
        )
    contents.options._unfreeze()
    contents.options.deleteIfExists("ipu_version")
    if contents.options.connection_type == ConnectionType.Never.value:
        contents.options.connectionType(ConnectionType.Always)
    assert isinstance(contents, ExecutableFile)
    return contents


def without_values(bound: BoundArguments) -> BoundArguments:
    """The same arguments around zeros: compilation needs shapes, and the file should hold no data."""
    bare = bound.copy()
    empty = [torch.zeros_like(tensor) for tensor in bound.tensors()]
    bare.args, bare.kwargs = with_tensors((bound.args, bound.kwargs), empty)
    return bare
