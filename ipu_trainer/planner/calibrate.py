"""Refit the fitted constants from rows: `python -m ipu_trainer.planner.calibrate [CSV] [--write [FILE]] [--document [FILE]]`.

Time: least squares on log throughput with log constants, so constants stay positive and errors are relative; beyond
ROBUST_BEYOND a row's pull stays the same (Huber), because one pipeline differs by that much between frameworks. Memory: one
constant, from one side, as runs that are published did fit. numpy alone. `--check CSV` holds the shipped constants against
rows that they have not seen.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from ipu_trainer.atomic import write_json, write_text
from ipu_trainer.errors import UserError
from ipu_trainer.planner import error_table
from ipu_trainer.planner.constants import (
    DOES_NOT_FIT_ABOVE,
    FULLEST,
    MEMORY,
    TIME,
    Calibration,
    MemoryConstants,
    TimeConstants,
)
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.published import PublishedRow, read_rows
from ipu_trainer.planner.time import predict_time

_FITTED = (
    "efficiency",
    "head_efficiency",
    "layer_cycles",
    "linear_cycles",
    "softmax_cycles",
    "host_s",
    "gateway_s",
    "image_factor",
)
# How many standard deviations of prior knowledge hold a constant that few rows speak of, relative to one row's error.
_PRIOR = 0.2
# Relative error from which a row counts as an outlier.
ROBUST_BEYOND = 0.08
# Round numbers that the fit starts from and is held to.
ORIGIN = TimeConstants(0.5, 0.07, 3e5, 1.0, 5.0, 0.1, 0.05, 1.5)


def calibrate(rows: Sequence[PublishedRow]) -> Calibration:
    """Constants from rows, with a spread for each family. Raises UserError where no row has a throughput of training alone."""
    constants = fit(rows)
    spread = spreads(leave_out(rows))
    used = sum(row.is_fitted for row in rows)
    values = {name: float(f"{getattr(constants, name):.6g}") for name in _FITTED}
    return Calibration(TimeConstants(**values, spread=spread), fit_memory(rows), used)


def fit(rows: Sequence[PublishedRow], start: TimeConstants = ORIGIN, steps: int = 100) -> TimeConstants:
    """Constants of time with the least robust log error on rows that have a throughput of training alone."""
    used = [row for row in rows if row.is_fitted]
    if not used:
        raise UserError("no row has a job and a throughput without evaluation. Add measured rows.")
    logs = np.log([getattr(start, name) for name in _FITTED])
    origin = logs.copy()
    for _ in range(steps):
        residual = _residuals(used, logs)
        jacobian = np.stack(
            [(_residuals(used, logs + 1e-4 * unit) - residual) / 1e-4 for unit in np.eye(len(logs))], axis=1
        )
        weight = np.minimum(1.0, ROBUST_BEYOND / np.maximum(np.abs(residual), 1e-9))[:, None]
        hessian = jacobian.T @ (weight * jacobian) + (_PRIOR**2) * np.eye(len(logs))
        gradient = (weight * jacobian).T @ residual + (_PRIOR**2) * (logs - origin)
        step = np.clip(-np.linalg.solve(hessian, gradient), -0.3, 0.3)
        logs = logs + step
        if np.abs(step).max() < 1e-6:
            break
    return _from_vector(logs)


def leave_out(
    rows: Sequence[PublishedRow], key: Callable[[PublishedRow], Any] = lambda row: row.group
) -> Dict[PublishedRow, float]:
    """Relative error of every fitted row by constants that saw no row with its key: by default one shape under one code base."""
    used = [row for row in rows if row.is_fitted]
    errors: Dict[PublishedRow, float] = {}
    for group in sorted({key(row) for row in used}, key=str):
        constants = fit([row for row in used if key(row) != group])
        errors.update({row: error(row, constants) for row in used if key(row) == group})
    return errors


def spreads(errors: Dict[PublishedRow, float]) -> Dict[str, float]:
    """For each family the factor that covers its held-out errors, and at least 90 % of all families': few rows are no proof."""
    sizes = {row: abs(math.log1p(value)) for row, value in errors.items()}
    least = float(np.percentile(list(sizes.values()), 90))
    families = sorted({row.family for row in sizes})
    worst = {name: max(size for row, size in sizes.items() if row.family == name) for name in families}
    return {name: math.ceil(100 * math.exp(max(size, least))) / 100 for name, size in worst.items()}


def fit_memory(rows: Sequence[PublishedRow]) -> MemoryConstants:
    """The largest code_bytes with which no published run needs more than FULLEST of its SRAM."""
    room = [
        FULLEST * memory.sram_bytes - sum(ipu.values())
        for row in rows
        if row.job is not None and row.fits
        for memory in [predict_memory(row.workload, row.job, MemoryConstants(0.0))]
        for ipu in memory.ipus
    ]
    if min(room, default=0.0) <= 0:
        raise UserError(
            "a run that is said to fit needs more than its SRAM without any code, or no row fits. Check the rows' placements."
        )
    return MemoryConstants(float(round(min(room))))


def error(row: PublishedRow, constants: TimeConstants = TIME) -> float:
    """Predicted over published throughput, less 1."""
    assert row.job is not None and row.throughput is not None
    return predict_time(row.workload, row.job, row.ipu, constants).throughput / row.throughput - 1


def summary(errors: Sequence[float]) -> str:
    """Median, 90th percentile and worst of absolute errors, in per cent."""
    sizes = 100 * np.abs(np.array(errors))
    return f"median {np.median(sizes):.1f} %, p90 {np.percentile(sizes, 90):.1f} %, worst {sizes.max():.1f} %"


def check(rows: Sequence[PublishedRow], time: TimeConstants = TIME, memory: MemoryConstants = MEMORY) -> str:
    """What constants that are not refitted say of rows: errors, bands, and why others are not modelled."""
    lines: List[str] = []
    for row in rows:
        name = f"{row.model} {row.task} {row.sequence or ''} {row.ipu.name}"
        if row.job is None:
            lines.append(f"{'':22} {name}: {row.not_modelled}")
            continue
        found = predict_memory(row.workload, row.job, memory)
        difference = f"{100 * error(row, time):+7.1f} %" if row.is_timed else " " * 9
        notes = [
            word
            for word, wanted in (("includes evaluation", row.includes_evaluation), ("misfit", not row.fits))
            if wanted
        ]
        lines.append(f"{difference} {found.share:.2f} {found.band:12} {', '.join([name, *notes])}")
    timed = [row for row in rows if row.is_timed and not row.includes_evaluation]
    for family in sorted({row.family for row in timed}):
        errors = [error(row, time) for row in timed if row.family == family]
        lines.append(f"{family}, {len(errors)} rows: {summary(errors)}")
    modelled = [(row.fits, predict_memory(row.workload, row.job, memory).share) for row in rows if row.job is not None]
    refused = sum(share > DOES_NOT_FIT_ABOVE for fits, share in modelled if fits)
    lines.append(f"of {sum(fits for fits, _ in modelled)} that fit, {refused} are predicted not to fit")
    return "\n".join(lines)


def _from_vector(logs: np.ndarray) -> TimeConstants:
    values: Dict[str, Any] = dict(zip(_FITTED, (float(value) for value in np.exp(logs))))
    return TimeConstants(**values)


def _residuals(rows: Sequence[PublishedRow], logs: np.ndarray) -> np.ndarray:
    constants = _from_vector(logs)
    return np.log([1 + error(row, constants) for row in rows])


def main(words: Optional[Sequence[str]] = None) -> int:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m ipu_trainer.planner.calibrate", description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, help="rows to fit (default: the packaged ones)")
    parser.add_argument(
        "--write", nargs="?", type=Path, const=here / "calibrated.json", metavar="FILE",
        help="write the constants, for `plan --constants FILE` (default: as the packaged ones)",
    )  # fmt: skip
    parser.add_argument(
        "--document", nargs="?", type=Path, const=here.parents[1] / "docs" / "planner.md", metavar="FILE",
        help="write table and plot of the errors between the markers of a Markdown file (default: docs/planner.md)",
    )  # fmt: skip
    parser.add_argument("--check", type=Path, metavar="CSV", help="only hold the shipped constants against these rows")
    namespace = parser.parse_args(words)
    if namespace.check:
        print(check(read_rows(namespace.check)))
        return 0
    rows = read_rows(namespace.csv)
    result = calibrate(rows)
    for name, value in {**vars(result.time), **vars(result.memory)}.items():
        print(f"{name} = {value}")
    used = [row for row in rows if row.is_fitted]
    held = leave_out(rows)
    print(f"in sample, {len(used)} rows: {summary([error(row, result.time) for row in used])}")
    print(f"one shape left out: {summary(list(held.values()))}")
    print(f"one model left out: {summary(list(leave_out(rows, lambda row: row.model).values()))}")
    if namespace.write:
        write_json(namespace.write, result.to_dict())
    if namespace.document:
        plot = namespace.document.parent / "images" / "planner_errors.svg"
        write_text(plot, error_table.plot(rows, held))
        text = namespace.document.read_text(encoding="utf-8")
        write_text(
            namespace.document, error_table.replace_between_markers(text, error_table.section(rows, held, result))
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
