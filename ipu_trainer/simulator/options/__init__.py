"""What a program asks of the device: poptorch.Options and its groups, as closed, validated dictionaries.

Also the strategies that say which part of a model runs where, the file form of options, and the names that the compiler
underneath knows.
"""

from __future__ import annotations

from ipu_trainer.simulator.options.closed_dictionary import OptionsDict
from ipu_trainer.simulator.options.options import Attribute, Options
from ipu_trainer.simulator.options.options_file import ConfigFileError
from ipu_trainer.simulator.options.options_groups import TensorLocationSettings
from ipu_trainer.simulator.options.strategies import (
    BlockId,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

__all__ = [
    "Attribute",
    "BlockId",
    "ConfigFileError",
    "Options",
    "OptionsDict",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
]
