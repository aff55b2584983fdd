"""Micro-batch coalescing: one forward and backward for all micro-batches of a weight update. Off by default.

A device computes micro-batches one by one, and so does the simulator. Coalesced, a replica's micro-batches of one update are one
batch whose mean loss counts once for each of them, which gives equal gradients where the loss is a mean over samples. The first
update is computed both ways and compared. Where they differ it is refused, since a simulation must not be another program.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Dict, List, Sequence

import torch

from ipu_trainer.simulator.enums import OutputMode

if TYPE_CHECKING:
    from ipu_trainer.simulator.execution.engine import Engine

# Largest difference of a gradient, relative to its norm, that the order of float32 sums explains.
_TOLERANCE = 1e-4
_enabled = False


def coalesce_micro_batches(on: bool = True) -> None:
    """Whether executors made from now on coalesce the micro-batches of an update.

    Their calls raise ValueError where coalesced gradients would differ from those of micro-batches one by one.
    """
    global _enabled
    _enabled = bool(on)


def fold_micro_batches(on: bool = True) -> None:
    """Deprecated name of coalesce_micro_batches()."""
    warnings.warn("fold_micro_batches is called coalesce_micro_batches now.", FutureWarning, stacklevel=2)
    coalesce_micro_batches(on)


def coalescing_enabled() -> bool:
    """Whether new executors coalesce."""
    return _enabled


def check_coalescible(engine: Engine) -> None:
    """Raise ValueError for what needs micro-batches one by one."""
    compilation = engine.compilation
    reasons = {
        "a trace measures single micro-batches": bool(engine.observers),
        "half precision rounds by micro-batches": compilation.has_half,
        "forward writes into its inputs": bool(compilation.written_inputs),
        "automatic loss scaling counts gradients of micro-batches": engine.optimizer is not None
        and engine.optimizer.automatic is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise refusal(reason)


def concatenate(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inputs of several micro-batches along dimension 0; a tensor without dimensions is the same for all."""
    return torch.cat(list(pieces)) if pieces[0].dim() else pieces[0]


def split_outputs(outputs: Sequence[torch.Tensor], count: int, mode: OutputMode) -> List[List[torch.Tensor]]:
    """The outputs of each of `count` micro-batches, from those of the coalesced batch.

    Of a scalar, such as the loss, only the mean is known: each micro-batch gets the mean, and only their sum is exact. Raises
    ValueError for an output mode that returns scalars of single micro-batches.
    """
    split: List[Sequence[torch.Tensor]] = []
    for output in outputs:
        if output.dim() == 0:
            if mode != OutputMode.Sum:
                raise refusal(f"outputMode {mode.name} returns the scalar of single micro-batches; use outputMode(Sum)")
            split.append([output] * count)
        elif len(output) % count:
            raise refusal(f"an output of shape {tuple(output.shape)} is not {count} micro-batches")
        else:
            split.append(output.chunk(count))
    return [list(values) for values in zip(*split)] if split else [[] for _ in range(count)]


def check_equal(one_by_one: Dict[int, torch.Tensor], coalesced: Dict[int, torch.Tensor]) -> None:
    """Raise ValueError unless two sets of gradients are equal up to rounding, parameter by parameter."""
    if one_by_one.keys() != coalesced.keys():
        raise refusal("other weights get gradients")
    whole = float(sum(float(value.norm()) ** 2 for value in one_by_one.values())) ** 0.5
    for key, value in one_by_one.items():
        norm = max(float(value.norm()), 1e-3 * whole)
        difference = float((coalesced[key] - value).norm())
        if not difference <= _TOLERANCE * norm:
            raise refusal(
                f"a gradient of the first update differs by {difference / norm if norm else float('inf'):.1e} of its norm "
                f"(at most {_TOLERANCE:g}), so the loss is no mean over samples, or forward draws random numbers (dropout)"
            )


def refusal(reason: str) -> ValueError:
    """The error for a program whose micro-batches cannot be coalesced."""
    return ValueError(
        f"micro-batches cannot be coalesced: {reason}. Turn coalescing off (simulate without --coalesce, "
        "coalesce_micro_batches(False)), or change the program."
    )
