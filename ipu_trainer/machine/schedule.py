"""Pipeline schedules as data: the micro-batch of every stage in every cycle.

One weight update of a pipeline over D IPUs with G micro-batches. Micro-batch m runs forward on IPU i in cycle m + i and backward
in cycle m + 2 (D - 1) - i; the last IPU runs both in one cycle. With D = 3 and G = 5:

    cycle    0   1   2   3   4   5   6   7   8
    IPU 0   F0  F1  F2  F3  F4B0 B1  B2  B3  B4        F4B0: forward of 4, then backward of 0
    IPU 1       F0  F1  F2B0 ...
    IPU 2           F0B0 F1B1 ...

so an update takes G + 2 (D - 1) cycles, in a cycle an IPU runs at most one forward and one backward, one after the other, and the
pipeline only fills if G >= 2 D - 1. Source: popart, docs/notes/transforms/pipelining.md; PopTorch overview, "Pipelined execution".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Tuple

from ipu_trainer.errors import UserError

FORWARD, RECOMPUTE, BACKWARD = "F", "R", "B"
# The order of an IPU's actions within a cycle.
_ORDER = {FORWARD: 0, RECOMPUTE: 1, BACKWARD: 2}


@dataclass(frozen=True, order=True)
class Action:
    """One stage's work on one micro-batch. Prints as F3, R3 or B3, which parse_grid() reads."""

    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}"


@dataclass(frozen=True)
class Schedule:
    """cycles[c][i] are the actions of IPU i in cycle c, in order; an empty tuple is a bubble."""

    num_ipus: int
    num_micro_batches: int
    cycles: Tuple[Tuple[Tuple[Action, ...], ...], ...]

    @property
    def num_cycles(self) -> int:
        return len(self.cycles)

    def cycle_of(self, ipu: int, kind: str, micro_batch: int) -> int:
        """The cycle of an action. Raises KeyError if it is in none."""
        for number, cycle in enumerate(self.cycles):
            if Action(kind, micro_batch) in cycle[ipu]:
                return number
        raise KeyError(f"{kind}{micro_batch} never runs on IPU {ipu}")

    def grid(self) -> str:
        """The schedule as a table, one line an IPU, one column a cycle."""
        cells = [["".join(map(str, cycle[ipu])) or "." for cycle in self.cycles] for ipu in range(self.num_ipus)]
        widths = [max(len(row[column]) for row in cells) for column in range(self.num_cycles)]
        return "\n".join(
            f"IPU {ipu}  " + " ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for ipu, row in enumerate(cells)
        )


def parse_grid(text: str) -> Schedule:
    """The schedule that `grid` printed. Raises UserError for a table that is not one."""
    rows: List[List[Tuple[Action, ...]]] = []
    for line in text.strip().splitlines():
        name, _, cells = line.strip().partition("  ")
        if name != f"IPU {len(rows)}":
            raise UserError(f"line {line!r} should begin with 'IPU {len(rows)}  '.")
        row = []
        for cell in cells.split():
            if cell != "." and not re.fullmatch(r"([FRB]\d+)+", cell):
                raise UserError(f"cell {cell!r} of {name} is neither '.' nor actions such as F4B0.")
            row.append(tuple(Action(kind, int(number)) for kind, number in re.findall(r"([FRB])(\d+)", cell)))
        rows.append(row)
    if len({len(row) for row in rows}) != 1:
        raise UserError(f"the lines have {[len(row) for row in rows]} cells, but each needs as many.")
    cycles = tuple(tuple(row[cycle] for row in rows) for cycle in range(len(rows[0])))
    micro_batches = {action.micro_batch for cycle in cycles for actions in cycle for action in actions}
    return Schedule(len(rows), len(micro_batches), cycles)


def pipelined_training(num_ipus: int, num_micro_batches: int, recompute: bool = False) -> Schedule:
    """One weight update under PipelinedExecution. With recompute every stage but the last runs its forward again before B."""
    check_accumulation(num_ipus, num_micro_batches)
    return _schedule(num_ipus, num_micro_batches, 1, training=True, recompute=recompute)


def pipelined_inference(num_ipus: int, num_micro_batches: int) -> Schedule:
    """One host step of inference under PipelinedExecution: device iterations fill the pipeline."""
    if num_micro_batches < num_ipus:
        raise UserError(
            f"{num_micro_batches} device iterations cannot fill a pipeline of {num_ipus} stages. "
            f"Use deviceIterations of {num_ipus} or more."
        )
    return _schedule(num_ipus, num_micro_batches, 1, training=False)


def sharded_training(num_ipus: int, num_micro_batches: int) -> Schedule:
    """One weight update under ShardedExecution: one IPU works, the others wait."""
    return _schedule(num_ipus, num_micro_batches, 2 * num_ipus - 1, training=True)


def sharded_inference(num_ipus: int, num_micro_batches: int) -> Schedule:
    return _schedule(num_ipus, num_micro_batches, num_ipus, training=False)


def check_accumulation(num_ipus: int, num_micro_batches: int) -> None:
    """Raises UserError unless the micro-batches of an update fill the pipeline."""
    if num_ipus < 1:
        raise UserError(f"num_ipus {num_ipus} must be at least 1.")
    smallest = 2 * num_ipus - 1
    if num_micro_batches < smallest:
        raise UserError(
            f"{num_micro_batches} micro-batches per weight update cannot fill a pipeline of {num_ipus} IPUs, which needs at "
            f"least 2 x {num_ipus} - 1. Use a gradient accumulation of {smallest} or more."
        )


def _schedule(
    num_ipus: int, num_micro_batches: int, interval: int, training: bool, recompute: bool = False
) -> Schedule:
    """A micro-batch enters the first IPU every `interval` cycles."""
    last = num_ipus - 1
    num_cycles = (num_micro_batches - 1) * interval + (2 * last if training else last) + 1
    cycles: List[List[List[Action]]] = [[[] for _ in range(num_ipus)] for _ in range(num_cycles)]
    for micro_batch in range(num_micro_batches):
        begin = micro_batch * interval
        for ipu in range(num_ipus):
            cycles[begin + ipu][ipu].append(Action(FORWARD, micro_batch))
            if training:
                backward = cycles[begin + 2 * last - ipu][ipu]
                backward += [Action(RECOMPUTE, micro_batch)] if recompute and ipu != last else []
                backward.append(Action(BACKWARD, micro_batch))

    def in_order(actions: List[Action]) -> Tuple[Action, ...]:
        return tuple(sorted(actions, key=lambda action: _ORDER[action.kind]))

    return Schedule(num_ipus, num_micro_batches, tuple(tuple(map(in_order, cycle)) for cycle in cycles))
