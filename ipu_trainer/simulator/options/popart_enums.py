"""The enumerations of PopART that programs for poptorch name, as `import popart` would give them.

Source: graphcore/popart, willow/include/popart/sessionoptions.hpp; the numbers reach options dictionaries.
"""

from __future__ import annotations

import enum


class AccumulateOuterFragmentSchedule(enum.IntEnum):
    """How weight updates are scheduled against each other."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class SubgraphCopyingStrategy(enum.IntEnum):
    """When inputs and outputs of called subgraphs are copied."""

    OnEnterAndExit = 0
    JustInTime = 1


class RecomputationType(enum.IntEnum):
    """Which activations are computed again for backward."""

    NoRecompute = 0
    Standard = 1
    NormOnly = 2
    Pipeline = 3
    RecomputeAll = 4


class SyntheticDataMode(enum.IntEnum):
    """What takes the place of transferred data."""

    Off = 0
    Zeros = 1
    RandomNormal = 2
    RandomUniform = 3
