"""Refit the constants of time.py: `python -m ipu_trainer.planner.calibrate [CSV]`. Rows: see published.py.

Gauss-Newton on log throughput with log constants, so constants stay positive and errors are relative. numpy alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Dict, List, Sequence

import numpy as np

from ipu_trainer.planner.constants import TIME, TimeConstants
from ipu_trainer.planner.published import PublishedRow, read_rows
from ipu_trainer.planner.time import predict_time

_FITTED = ("efficiency", "head_efficiency", "layer_cycles", "linear_cycles", "softmax_cycles", "host_s", "gateway_s")
# How many standard deviations of prior knowledge hold a constant that few rows speak of, relative to one row's error.
_PRIOR = 0.2
# Round numbers that the fit starts from and is held to: not the fitted ones, which have seen the rows left out.
ORIGIN = TimeConstants(0.5, 0.07, 3e5, 1.0, 5.0, 0.1, 0.05, {"vit": 1.5})


def fit(rows: Sequence[PublishedRow], start: TimeConstants = ORIGIN, steps: int = 25) -> TimeConstants:
    """Constants with the least squared log error on rows that have a throughput of training alone."""
    used = [row for row in rows if row.is_fitted]
    if not used:
        raise ValueError("no row has a job and a throughput without evaluation. Add measured rows.")
    logs = np.log(_to_vector(start))
    origin = logs.copy()
    for _ in range(steps):
        residual = _residuals(used, logs)
        jacobian = np.stack(
            [(_residuals(used, logs + 1e-4 * unit) - residual) / 1e-4 for unit in np.eye(len(logs))], axis=1
        )
        hessian = jacobian.T @ jacobian + (_PRIOR**2) * np.eye(len(logs))
        step = np.linalg.solve(hessian, -(jacobian.T @ residual) - (_PRIOR**2) * (logs - origin))
        logs = logs + np.clip(step, -0.3, 0.3)
    return _from_vector(logs)


def leave_one_group_out(rows: Sequence[PublishedRow]) -> Dict[PublishedRow, float]:
    """Relative error of every fitted row by constants that saw no row of its group."""
    used = [row for row in rows if row.is_fitted]
    errors: Dict[PublishedRow, float] = {}
    for group in sorted({row.group for row in used}, key=str):
        constants = fit([row for row in used if row.group != group])
        errors.update({row: error(row, constants) for row in used if row.group == group})
    return errors


def error(row: PublishedRow, constants: TimeConstants = TIME) -> float:
    """Predicted over published throughput, less 1."""
    assert row.job is not None and row.throughput is not None
    return predict_time(row.workload, row.job, row.ipu, constants).throughput / row.throughput - 1


def _to_vector(constants: TimeConstants) -> np.ndarray:
    return np.array([*(getattr(constants, name) for name in _FITTED), constants.family_factor["vit"]])


def _from_vector(logs: np.ndarray) -> TimeConstants:
    values = [float(value) for value in np.exp(logs)]
    return dataclasses.replace(TIME, **dict(zip(_FITTED, values)), family_factor={"vit": values[-1]})


def _residuals(rows: Sequence[PublishedRow], logs: np.ndarray) -> np.ndarray:
    constants = _from_vector(logs)
    return np.log([1 + error(row, constants) for row in rows])


def summary(errors: Sequence[float]) -> str:
    """Median, 90th percentile and worst of absolute errors, in per cent."""
    sizes = 100 * np.abs(np.array(errors))
    return f"median {np.median(sizes):.1f} %, p90 {np.percentile(sizes, 90):.1f} %, worst {sizes.max():.1f} %"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ipu_trainer.planner.calibrate", description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, help="rows to fit (default: the packaged ones)")
    rows: List[PublishedRow] = read_rows(parser.parse_args(words).csv)
    constants = fit(rows)
    for name, value in dataclasses.asdict(constants).items():
        print(f"{name} = {value}")
    used = [row for row in rows if row.is_fitted]
    print(f"in sample, {len(used)} rows: {summary([error(row, constants) for row in used])}")
    held = leave_one_group_out(rows)
    print(f"one group left out: {summary(list(held.values()))}")
    for row, value in held.items():
        print(f"  {100 * value:+6.1f} %  {row.group} {row.ipu.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
