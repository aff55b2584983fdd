"""How many micro-batches of an update the host computes in one forward and backward pass: a decision made from values alone.

An IPU profile such as 1 x 128 means 128 passes of one sample; a GPU or CPU does the same work in a few large passes. The result is
equal where the loss of a batch follows from its single samples: losses that are means or sums of them, which
loss/accumulated_loss.py weighs. Rules exclude what is known to differ; then the gradients of a few micro-batches of the data are
compared, computed one by one and together, with dropout off. (Dropout draws other numbers in larger passes, as it does in another
order of samples.) What is not equal is computed one by one, and the log gives the reason.

The decision depends on the model, the data and the machine, never on how much memory happens to be free: the same run has the
same passes each time. A checkpoint holds it, so that a resumed run has them too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Union

import torch

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json

AUTO = "auto"
ONE_BY_ONE = "micro_batch"
COALESCING_FILE = "coalescing.json"
_HELD = ("micro_batch", "factor", "chunk")

# Micro-batches that are compared one by one with all of them together: unequal losses show in a few already.
COMPARED = 8
# Largest relative difference of gradients that rounding explains: float32, and where a GPU rounds its products to TF32,
# bfloat16 or float16. Losses that compare samples, or batch statistics, differ by percents.
_TOLERANCE = {False: 1e-4, True: 2e-2}
# Share of a GPU's memory that activations may take, gradients and optimizer states taken off.
_GPU_SHARE = 0.55
# Larger passes than this gain nothing on a CPU.
_CPU_ACTIVATION_BYTES = 2 << 30


@dataclass(frozen=True)
class Coalescing:
    """factor micro-batches are computed in one pass; reason says why so many, or why they are computed one by one.

    chunk: micro-batches at a time, where memory was found to hold fewer.
    """

    factor: int
    reason: str
    chunk: Optional[int] = None


@dataclass(frozen=True)
class Obstacle:
    """A rule that keeps micro-batches apart where applies is true."""

    applies: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Gradients of the same micro-batches, one by one and together.

    difference: relative, of the worst parameter. bytes_of_one: what autograd keeps for the backward pass of one micro-batch.
    failed: why they could not be compared, or "".
    """

    difference: float
    bytes_of_one: int
    failed: str = ""


# compare(count, factor): count micro-batches one by one and in passes of factor.
Compare = Callable[[int, int], Comparison]


def decide(
    requested: str,
    micro_batch: int,
    accumulation: int,
    obstacles: List[Obstacle],
    why_not: Callable[[int], Optional[str]],
    compare: Compare,
    budget_bytes: int,
    rounds: bool,
    verify: bool,
) -> Coalescing:
    """How many of the `accumulation` micro-batches of one update this process computes together.

    requested: host_micro_batch_size. why_not(factor): why an epoch's samples do not allow such passes, or None. rounds: whether
    products are in less than float32. verify: compare all micro-batches of an update. Raises UserError for a size that was
    asked for and cannot be.
    """
    if requested == ONE_BY_ONE:
        return Coalescing(1, "asked for")
    sizes = divisors_down(accumulation, accumulation)
    if requested != AUTO:
        asked = factor_of(int(requested), micro_batch, accumulation)
        if asked == 1:
            return Coalescing(1, "asked for")
        sizes = [asked]
    reason = next((obstacle.reason for obstacle in obstacles if obstacle.applies), "")
    compared = min(accumulation, COMPARED)
    if not reason:
        found = compare(compared, compared)
        reason = found.failed or _too_different(found.difference, compared, rounds)
        if not reason and requested == AUTO:
            largest = largest_that_fits(budget_bytes, found.bytes_of_one)
            sizes = [size for size in sizes if size <= largest]
    factor = 1
    for size in sizes if not reason else ():
        prevented = why_not(size)
        if prevented is None:
            factor = size
            break
        reason = prevented
    if factor > 1 and verify and accumulation > compared:
        compared, reason = accumulation, ""
        found = compare(accumulation, factor)
        reason = found.failed or _too_different(found.difference, accumulation, rounds)
        factor = 1 if reason else factor
    if factor > 1:
        return Coalescing(factor, f"equal: gradients of {compared} differ by {found.difference:.1e}")
    reason = reason or "two micro-batches do not fit into the memory"
    if requested != AUTO:
        raise UserError(
            f"host_micro_batch_size {requested} computes {sizes[0]} micro-batches of {micro_batch} together, which is not possible "
            f"here: {reason}. Use {micro_batch}, or auto."
        )
    return Coalescing(1, reason)


def check_requested(requested: str) -> None:
    """Raise UserError for a host_micro_batch_size that is neither a number of samples nor auto."""
    if requested not in (AUTO, ONE_BY_ONE) and not (requested.isdigit() and int(requested)):
        raise UserError(
            f"host_micro_batch_size {requested!r} must be auto, micro_batch (one by one), or the samples of a forward pass."
        )


def factor_of(size: int, micro_batch: int, accumulation: int) -> int:
    """Micro-batches in a pass of so many samples. Raises UserError, with the possible sizes, where they are not whole."""
    factor, rest = divmod(size, micro_batch)
    if rest or not factor or accumulation % factor:
        possible = [micro_batch * number for number in range(1, accumulation + 1) if accumulation % number == 0]
        raise UserError(
            f"host_micro_batch_size {size} does not divide an update of {accumulation} micro-batches of {micro_batch} samples in "
            f"each process. Use one of {', '.join(map(str, possible))}, or auto."
        )
    return factor


def why_not_by_size(num_samples: int, micro_batch: int, accumulation: int, factor: int, drop_last: bool, processes: int,
                    loop_weighs: bool) -> Optional[str]:  # fmt: skip
    """Why passes of `factor` micro-batches do not make the updates that single ones make, of num_samples in an epoch; or None.

    loop_weighs: the loop can weigh the passes of an epoch's last, smaller update (transformers 5).
    """
    if num_samples % (micro_batch * accumulation * processes) == 0:
        return None
    rest = f"{num_samples} samples are not whole updates of {micro_batch * accumulation * processes}"
    if processes > 1:
        return f"{rest}, and processes would share out the last one differently"
    if not loop_weighs:
        return f"{rest}, and this transformers carries what is left into the next epoch"
    if drop_last and num_samples % micro_batch and num_samples // micro_batch % factor:
        return (
            f"{num_samples} samples are not whole micro-batches of {micro_batch}, and drop_last would drop a whole pass"
        )
    return None


def _too_different(difference: float, count: int, rounds: bool) -> str:
    if difference <= _TOLERANCE[rounds]:
        return ""
    return (
        f"together they are not equal: gradients of {count} differ by {difference:.1e} (at most {_TOLERANCE[rounds]:g})"
    )


def divisors_down(number: int, largest: int) -> List[int]:
    """Divisors of number from the largest allowed down to 2."""
    return [size for size in range(min(number, largest), 1, -1) if number % size == 0]


def activation_budget_bytes(gpu_bytes: Optional[int], parameter_bytes: int) -> int:
    """Bytes that the activations of a pass may take. gpu_bytes: the whole memory of the GPU, or None on a CPU."""
    if gpu_bytes is None:
        return _CPU_ACTIVATION_BYTES
    return max(0, int(_GPU_SHARE * (gpu_bytes - 3 * parameter_bytes)))


def largest_that_fits(budget_bytes: int, bytes_of_one: int) -> int:
    return max(1, budget_bytes // max(1, bytes_of_one))


def relative_difference(apart: Mapping[str, torch.Tensor], together: Mapping[str, torch.Tensor]) -> float:
    """Of the worst parameter, by its norm; gradients that are rounding noise beside the whole one do not count."""
    if not apart or apart.keys() != together.keys():
        return float("inf")
    whole = float(torch.linalg.vector_norm(torch.stack([value.norm() for value in apart.values()])))
    worst = 0.0
    for name, value in apart.items():
        norm = max(float(value.norm()), 1e-3 * whole)
        worst = max(worst, float((together[name] - value).norm()) / norm if norm else 0.0)
    return worst if whole < float("inf") else float("inf")


def write_coalescing(folder: Union[str, os.PathLike[str]], factor: int, chunk: int, micro_batch: int) -> None:
    """Keep the decision in a checkpoint."""
    write_json(Path(folder) / COALESCING_FILE, dict(zip(_HELD, (micro_batch, factor, chunk))))


def read_coalescing(checkpoint: Optional[str], micro_batch: int, accumulation: int) -> Optional[Coalescing]:
    """The decision that a checkpoint holds, where it still divides the update; None otherwise.

    Raises UserError for a damaged file.
    """
    file = Path(checkpoint or "") / COALESCING_FILE
    if not checkpoint or not file.is_file():
        return None
    held = read_json(file)
    numbers: List[Any] = [held.get(name) if isinstance(held, dict) else None for name in _HELD]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UserError(f"{file} must hold {', '.join(_HELD)} as whole numbers from 1 on. Remove it to decide again.")
    size, factor, chunk = numbers
    if size != micro_batch or accumulation % factor:
        return None
    return Coalescing(factor, "as in the checkpoint", chunk)
