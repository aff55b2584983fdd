"""Placement of layers on IPUs: wildcards resolved, or balanced by cost."""

from __future__ import annotations

from typing import Iterable, List, Sequence, Tuple

from ipu_trainer.errors import UserError

WILDCARD = -1


def even_split(num_layers: int, num_ipus: int) -> Tuple[int, ...]:
    """Equal numbers of layers, the remainder on the last IPU, as optimum-graphcore places them."""
    quotient, rest = divmod(num_layers, num_ipus)
    return (quotient,) * (num_ipus - 1) + (quotient + rest,)


def resolve_wildcards(layers_per_ipu: Sequence[int], num_layers: int) -> Tuple[int, ...]:
    """Replace each -1 by its share of the remaining layers. Raises UserError if the counts do not add up."""
    wildcards = [ipu for ipu, count in enumerate(layers_per_ipu) if count == WILDCARD]
    fixed = sum(count for count in layers_per_ipu if count != WILDCARD)
    rest = num_layers - fixed
    if rest < 0 or (rest and not wildcards):
        raise UserError(
            f"layers_per_ipu {list(layers_per_ipu)} places {fixed} layers, but the model has {num_layers}. "
            f"Use {list(even_split(num_layers, len(layers_per_ipu)))}, or -1 where the remainder may go."
        )
    resolved = list(layers_per_ipu)
    if wildcards:
        for ipu, count in zip(wildcards, even_split(rest, len(wildcards))):
            resolved[ipu] = count
    return tuple(resolved)


def num_stages(ipus: Iterable[int]) -> int:
    """Pipeline stages of forward: one more than the changes of IPU along the parts, from IPU 0 on."""
    path = [0, *ipus]
    return 1 + sum(before != after for before, after in zip(path, path[1:]))


def ipu_of_layer(layers_per_ipu: Sequence[int]) -> Tuple[int, ...]:
    """The IPU of each layer in order, from resolved counts."""
    return tuple(ipu for ipu, count in enumerate(layers_per_ipu) for _ in range(count))


def balance(
    layer_costs: Sequence[float], num_ipus: int, first_cost: float = 0.0, last_cost: float = 0.0
) -> Tuple[int, ...]:
    """Layers on each IPU that minimise the largest cost of an IPU, among all contiguous placements.

    layer_costs: cost of each layer in any unit; first_cost and last_cost are added to the first and last IPU (embedding, head).
    An IPU may have no layers. Among equal placements the one with less cost on later IPUs is returned.
    Dynamic programming over (IPU, layers placed), O(num_ipus x layers^2).
    Source: the linear partition problem, Skiena, "The algorithm design manual", section 8.5.
    """
    if num_ipus < 1:
        raise UserError(f"num_ipus {num_ipus} must be at least 1.")
    if min([first_cost, last_cost, *layer_costs]) < 0:
        raise UserError("costs must not be negative.")
    num_layers = len(layer_costs)
    prefix = [0.0]
    for cost in layer_costs:
        prefix.append(prefix[-1] + cost)

    def load(ipu: int, start: int, end: int) -> float:
        extra = (first_cost if ipu == 0 else 0.0) + (last_cost if ipu == num_ipus - 1 else 0.0)
        return prefix[end] - prefix[start] + extra

    worst: List[List[float]] = [[load(0, 0, end) for end in range(num_layers + 1)]]
    cut: List[List[int]] = [[0] * (num_layers + 1)]
    for ipu in range(1, num_ipus):
        row, cuts = [], []
        for end in range(num_layers + 1):
            best, where = min(
                ((max(worst[ipu - 1][start], load(ipu, start, end)), -start) for start in range(end + 1)),
            )
            row.append(best)
            cuts.append(-where)
        worst.append(row)
        cut.append(cuts)
    counts: List[int] = []
    end = num_layers
    for ipu in range(num_ipus - 1, -1, -1):
        start = cut[ipu][end]
        counts.append(end - start)
        end = start
    return tuple(reversed(counts))
