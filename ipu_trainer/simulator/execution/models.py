"""trainingModel, inferenceModel and load, which create a PoplarExecutor."""

from __future__ import annotations

import copy
from typing import Any, Callable, Optional, Union

import torch

from ipu_trainer.simulator.execution.executor import PoplarExecutor
from ipu_trainer.simulator.execution.saved_executables import read_executable
from ipu_trainer.simulator.optim import optimizers as optim
from ipu_trainer.simulator.options.options import Options
from ipu_trainer.simulator.state.wrapped_model import is_wrapped


def trainingModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """An executor that trains the model: each call is forward, backward and update. Default optimizer: SGD, lr 0.01.

    Raises RuntimeError if the model has a training executor already.
    """
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    if is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap "
            "before wrapping again."
        )
    return PoplarExecutor(copy.copy(model), options, training=True, optimizer=optimizer, user_model=model)


def inferenceModel(model: Union[torch.nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """An executor that runs forward, with the model's present weights, or those of the executor that trains the model."""
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    return PoplarExecutor(_plain_copy(model), options, training=False, followed=model)


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """The executor of a file that compileAndExport() or save() wrote, compiled. `edit_opts_fn` may change its options.

    Unpickles the file: load only files that you trust. Raises Error for another kind or version of file,
    AssertionError if the model was not exported.
    """
    contents = read_executable(filename)
    assert contents.model is not None and contents.training is not None, (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which means you need to "
        "re-create the PopTorch model using poptorch.inferenceModel or poptorch.trainingModel then call "
        f'executor.loadExecutable("{filename}") to load this executable.'
    )
    if edit_opts_fn is not None:
        edit_opts_fn(contents.options)
    if isinstance(contents.optimizer, optim.Optimizer):
        contents.optimizer.load_state_dict(contents.optimizer_state)
    if contents.training:
        executor = trainingModel(contents.model, contents.options, contents.optimizer)
    else:
        executor = inferenceModel(contents.model, contents.options)
    executor.loadExecutable(filename)
    if contents.rng_state is not None:
        executor.rng_state = contents.rng_state
    return executor


def _plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A shallow copy of the class that the model had before an executor wrapped it."""
    cls: Any = type(model).__bases__[0] if is_wrapped(model) else type(model)
    duplicate: torch.nn.Module = cls.__new__(cls)
    duplicate.__dict__.update(object.__getattribute__(model, "__dict__"))
    return duplicate
