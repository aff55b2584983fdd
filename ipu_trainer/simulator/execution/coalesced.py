"""The micro-batches of an update computed as one, where that changes nothing but the time: an option, off by default.

A device computes micro-batches one by one, and so does the simulator. Folded, a replica's micro-batches of one weight update
are one pass, which counts as many times as it holds micro-batches. That is equal for losses that are means over samples. The
first update is computed both ways and compared; what is not equal is refused, since a simulation must not be another program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Sequence

import torch

from ipu_trainer.simulator.enums import OutputMode

if TYPE_CHECKING:
    from ipu_trainer.simulator.execution.engine import Engine

# Largest difference of a gradient, relative to its norm, that the order of float32 sums explains.
_TOLERANCE = 1e-4
_on = False


def fold_micro_batches(on: bool = True) -> None:
    """Whether executors made from now on fold the micro-batches of an update.

    Their calls raise ValueError where a pass of all micro-batches would not be equal to them one by one.
    """
    global _on
    _on = bool(on)


def folding() -> bool:
    """Whether new executors fold."""
    return _on


def require_foldable(engine: Engine) -> None:
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


def joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inputs of several micro-batches as one, along dimension 0; a tensor without dimensions is the same for all."""
    return torch.cat(list(pieces)) if pieces[0].dim() else pieces[0]


def apart(outputs: Sequence[torch.Tensor], count: int, mode: OutputMode) -> List[List[torch.Tensor]]:
    """The outputs of each of `count` micro-batches, from those of all of them.

    A scalar, such as the loss, is known as their mean alone, so each gets the mean and only their sum is exact. Raises
    ValueError if single ones are asked for.
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


def require_equal(one_by_one: Dict[int, torch.Tensor], together: Dict[int, torch.Tensor]) -> None:
    """Raise ValueError unless two sets of gradients are equal up to rounding, parameter by parameter."""
    if one_by_one.keys() != together.keys():
        raise refusal("other weights get gradients")
    whole = float(sum(float(value.norm()) ** 2 for value in one_by_one.values())) ** 0.5
    for key, value in one_by_one.items():
        norm = max(float(value.norm()), 1e-3 * whole)
        difference = float((together[key] - value).norm())
        if not difference <= _TOLERANCE * norm:
            raise refusal(
                f"a gradient of the first update differs by {difference / norm if norm else float('inf'):.1e} of its norm "
                f"(at most {_TOLERANCE:g}), so the loss is no mean over samples, or forward draws random numbers (dropout)"
            )


def refusal(reason: str) -> ValueError:
    """What to raise where folding is not equal."""
    return ValueError(
        f"micro-batches cannot be folded: {reason}. Leave folding off (simulate without --fold, "
        "fold_micro_batches(False)), or change the program."
    )
