"""Predictions for people and programs. Nothing here is a measurement, and every table says so."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

from ipu_trainer.errors import UserError
from ipu_trainer.machine.schedule import pipelined_training
from ipu_trainer.planner.memory import PURPOSES
from ipu_trainer.planner.search import Plan, SearchResult

_MIB, _BAR = 2.0**20, 40
# Share of a host step from which the host's own time is worth a hint.
_HOST_BOUND = 0.25
_LETTERS = dict(zip(PURPOSES, "wgosrhtc"))


def table(plans: Sequence[Plan]) -> str:
    """One line a plan, best first."""
    rows = [
        (
            "#",
            "layers per IPU",
            "replicas",
            "micro-batch",
            "accum.",
            "made again from",
            "state",
            "matmul",
            "memory",
            "samples/s predicted",
        )
    ]
    for number, plan in enumerate(plans, start=1):
        job, (low, high) = plan.job, plan.time.interval
        state = ("off chip" if job.state_off_chip else "on chip") + (", sharded" if job.sharded_state else "")
        rows.append(
            (
                str(number),
                "[" + " ".join(map(str, job.layers_per_ipu)) + "]",
                str(job.replicas),
                str(job.micro_batch),
                str(job.accumulation),
                "nothing" if not job.recompute else "each layer" if job.checkpoint_each_layer else "each stage",
                state,
                " ".join(map(str, job.matmul_proportion)),
                f"{plan.memory.share:.2f} {plan.memory.band}",
                f"{plan.time.throughput:.0f} ({low:.0f} to {high:.0f}; {plan.time.family})",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def memory_bars(plan: Plan) -> str:
    """A bar for each IPU, a letter for each purpose; | is the end of SRAM."""
    lines = [f"memory per IPU, predicted ({', '.join(f'{letter} {name}' for name, letter in _LETTERS.items())})"]
    for ipu, (parts, share) in enumerate(zip(plan.memory.ipus, plan.memory.shares)):
        bar, total = "", 0.0
        for name in PURPOSES:
            total += parts[name] / plan.memory.sram_bytes
            bar += _LETTERS[name] * (round(total * _BAR) - len(bar))
        bar = bar.ljust(_BAR) + "|" if len(bar) <= _BAR else bar[:_BAR] + "|" + bar[_BAR:]
        lines.append(f"IPU {ipu:<2} {bar} {sum(parts.values()) / _MIB:5.0f} MiB  {share:.2f}")
    return "\n".join(lines)


def pipeline(plan: Plan) -> str:
    """The first update's schedule, drawn for the shortest accumulation that fills it."""
    num = len(plan.job.layers_per_ipu)
    if num == 1:
        return "one IPU: no pipeline"
    schedule = pipelined_training(num, min(plan.job.accumulation, 2 * num - 1))
    return f"pipeline (drawn with {schedule.num_micro_batches} of {plan.job.accumulation} micro-batches)\n{schedule.grid()}"


def totals(plan: Plan, dataset_size: int, epochs: int) -> str:
    """Time of a whole training. Evaluation, compilation and the host's own work are not in it."""
    if dataset_size < 1 or epochs < 1:
        raise UserError(f"dataset size {dataset_size} and epochs {epochs} must be at least 1.")
    steps = math.ceil(dataset_size / plan.time.samples) * epochs
    seconds = steps * plan.time.step_s
    return (
        f"{epochs} epochs of {dataset_size:,} samples: {steps:,} host steps, predicted {seconds / 3600:.2f} h "
        f"({plan.job.num_ipus * seconds / 3600:.2f} IPU-hours), without compilation and evaluation"
    )


def explain(plan: Plan) -> str:
    """The terms of time and memory."""
    time = plan.time
    terms = {
        "compute": time.compute_s,
        "pipeline bubble": time.bubble_s,
        "gradient reduction": time.reduction_s,
        "off-chip optimizer state": time.state_s,
        "gateway links": time.gateway_s,
        "host": time.host_s,
    }
    lines = [
        f"{name:<26}{1e3 * seconds:10.2f} ms  {100 * seconds / time.step_s:5.1f} %" for name, seconds in terms.items()
    ]
    lines.append("ms per micro-batch on each IPU: " + " ".join(f"{1e3 * slot:.2f}" for slot in time.slots))
    for ipu, parts in enumerate(plan.memory.ipus):
        lines.append(f"IPU {ipu}  " + ", ".join(f"{name} {size / _MIB:.0f}" for name, size in parts.items()) + " MiB")
    return "one host step, predicted\n" + "\n".join(lines)


def to_dict(plan: Plan, dataset_size: Optional[int] = None, epochs: int = 1) -> Dict[str, Any]:
    """A plan for `--json`; with dataset_size the seconds of the whole training too."""
    low, high = plan.time.interval
    steps = None if dataset_size is None else math.ceil(dataset_size / plan.time.samples) * epochs
    return {
        "config": plan.to_config().to_dict(),
        "micro_batch": plan.job.micro_batch,
        "predicted": {
            "samples_per_s": plan.time.throughput,
            "interval": [low, high],
            "calibrated_on": plan.time.family,
            "step_s": plan.time.step_s,
            **({} if steps is None else {"host_steps": steps, "training_s": steps * plan.time.step_s}),
            "memory_share": plan.memory.share,
            "memory_band": plan.memory.band,
            "memory_bytes": [dict(ipu) for ipu in plan.memory.ipus],
        },
    }


def render(result: SearchResult, top: int, explained: bool, dataset_size: Optional[int], epochs: int) -> str:
    """What `ipu-trainer plan` prints."""
    lines: List[str] = [
        f"{result.num_candidates} candidates, {len(result.plans)} may fit. All numbers are predictions, not results."
    ]
    lines += [
        f"  dropped {count:>6}: {reason}" for reason, count in sorted(result.dropped.items(), key=lambda item: -item[1])
    ]
    if not result.plans:
        return "\n".join([*lines, "Nothing is left. Try a larger system, another global batch or a shorter sequence."])
    best = result.plans[0]
    lines += ["", table(result.plans[:top]), "", memory_bars(best), "", pipeline(best)]
    if dataset_size is not None:
        lines += ["", totals(best, dataset_size, epochs)]
    if best.time.host_s > _HOST_BOUND * best.time.step_s and best.job.device_iterations == 1:
        lines += [
            "",
            f"{100 * best.time.host_s / best.time.step_s:.0f} % of a host step is the host's own time: --device_iterations 4 would "
            "spread it over four weight updates, between which a learning rate cannot change.",
        ]
    if explained:
        lines += ["", explain(best)]
    return "\n".join(lines)
