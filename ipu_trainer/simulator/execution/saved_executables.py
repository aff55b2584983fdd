"""What compileAndExport() and save() write, and load() and loadExecutable() read: one pickle.

There is no executable inside, since compiling takes no time here: the arguments to compile for, the options, and
usually the model, the optimizer and the generators. As with every pickle: load only files that you trust.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
from typing import Any, List, Optional

import torch

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
    """Write atomically; makes the folder."""
    folder = os.path.dirname(os.path.abspath(filename))
    os.makedirs(folder, exist_ok=True)
    optimizer = contents.optimizer
    own_state_dict = None if optimizer is None else optimizer.__dict__.pop("state_dict", None)
    try:
        data = _MAGIC + pickle.dumps(contents, protocol=4)
    finally:
        if optimizer is not None and own_state_dict is not None:
            optimizer.__dict__["state_dict"] = own_state_dict
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".executable-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, filename)
    except BaseException:
        os.unlink(temporary)
        raise


def read_executable(filename: str) -> ExecutableFile:
    """The contents of such a file, its options free to be changed.

    Raises Error for what is no such file, or of another version.
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
    """The same arguments around zeros: compiling again needs shapes, and a file of a model should hold no data."""
    bare = bound.copy()
    empty = [torch.zeros_like(tensor) for tensor in bound.tensors()]
    bare.args, bare.kwargs = with_tensors((bound.args, bound.kwargs), empty)
    return bare
