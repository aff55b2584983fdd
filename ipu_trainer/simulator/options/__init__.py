"""poptorch.Options and its groups: closed, validated dictionaries of what a program sets.

Also the execution strategies, which place blocks on IPUs, options from files, and the option names of the compiler.
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
