"""The micro-batches that each IPU stashes under a schedule, and for how long.

Between its forward and its backward a micro-batch's activations are stashed (with recomputation only the stage's inputs are).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.machine.schedule import BACKWARD, FORWARD, Schedule


@dataclass(frozen=True)
class StashInterval:
    """A micro-batch stashed on an IPU from the end of cycle `start` to its use in cycle `end`."""

    ipu: int
    micro_batch: int
    start: int
    end: int


def stash_intervals(schedule: Schedule) -> Tuple[StashInterval, ...]:
    """All stashes in the order of the forward passes. A forward whose backward is in the same cycle stashes nothing."""
    forward: Dict[Tuple[int, int], int] = {}
    intervals: List[StashInterval] = []
    for cycle, work in enumerate(schedule.cycles):
        for ipu, actions in enumerate(work):
            for action in actions:
                if action.kind == FORWARD:
                    forward[ipu, action.micro_batch] = cycle
                elif action.kind == BACKWARD and forward[ipu, action.micro_batch] < cycle:
                    start = forward[ipu, action.micro_batch]
                    intervals.append(StashInterval(ipu, action.micro_batch, start, cycle))
    return tuple(sorted(intervals, key=lambda item: (item.start, item.ipu)))


def stash_depths(schedule: Schedule) -> Tuple[int, ...]:
    """The largest number of micro-batches in the stash of each IPU in any cycle.

    In a cycle the new forward is stashed before the backward frees another, so both count: 2 (D - 1 - i) + 1 on IPU i of a full
    pipeline, none on the last.
    Source: popart, willow/src/transforms/pipeline.cpp.
    """
    depths = [0] * schedule.num_ipus
    intervals = stash_intervals(schedule)
    for cycle in range(schedule.num_cycles):
        held = [0] * schedule.num_ipus
        for interval in intervals:
            held[interval.ipu] += interval.start <= cycle <= interval.end
        depths = [max(pair) for pair in zip(depths, held)]
    return tuple(depths)


def stash_bytes(schedule: Schedule, activation_bytes: Sequence[int]) -> Tuple[int, ...]:
    """Peak bytes of stashed activations on each IPU.

    activation_bytes[i] is what IPU i keeps per micro-batch, in bytes. Raises UserError if the lengths differ.
    """
    if len(activation_bytes) != schedule.num_ipus:
        raise UserError(
            f"activation_bytes has {len(activation_bytes)} entries, but the schedule has {schedule.num_ipus} IPUs."
        )
    return tuple(depth * size for depth, size in zip(stash_depths(schedule), activation_bytes))
