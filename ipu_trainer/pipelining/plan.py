"""The IPU on which each part of a model begins, as a value that pipeline.py carries out, and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Tuple

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.machine.placement import ipu_of_layer, num_stages
from ipu_trainer.pipelining.anatomy import Anatomy, PipeliningError
from ipu_trainer.pipelining.architectures import architecture_of


@dataclass(frozen=True)
class Placement:
    """A part of the model that begins a block."""

    name: str
    kind: str
    ipu: int


def place(anatomy: Anatomy, config: IPUConfig) -> Tuple[Placement, ...]:
    """The blocks in execution order. Layers follow config.layers_per_ipu, a tied head goes where the stem is.

    Raises PipeliningError where layers_per_ipu does not fit the number of layers.
    """
    try:
        per_ipu = config.resolve_layers(len(anatomy.layers))
    except ValueError as error:
        raise PipeliningError(f"{anatomy.describe()}. {error}") from None
    last_ipu = len(per_ipu) - 1
    ipus = iter(ipu_of_layer(per_ipu))
    placements: List[Placement] = []
    after_tied = False
    for part in anatomy.parts:
        if part.kind == "layer":
            placements.append(Placement(part.name, part.kind, next(ipus)))
        elif part.kind == "tied head":
            placements.append(Placement(part.name, part.kind, 0))
            after_tied = True
        elif part.kind == "head" and not after_tied:
            placements.append(Placement(part.name, part.kind, last_ipu))
        elif part.kind == "bridge":
            shared = any(id(parameter) in anatomy.stem_weights for parameter in part.module.parameters())
            placements.append(Placement(part.name, part.kind, 0 if shared else -1))
    return tuple(_with_bridges(placements))


def _with_bridges(placements: List[Placement]) -> List[Placement]:
    """A bridge without weights of the stem begins on the IPU of the next layer."""
    done: List[Placement] = []
    following = 0
    for placement in reversed(placements):
        ipu = following if placement.ipu < 0 else placement.ipu
        if placement.kind == "layer":
            following = placement.ipu
        done.append(Placement(placement.name, placement.kind, ipu))
    return done[::-1]


def check_depth(placements: Tuple[Placement, ...], gradient_accumulation: int) -> None:
    """Raise PipeliningError where the accumulation is too short to fill the pipeline.

    Source: PopTorch user guide, "Pipelined execution": accumulation of at least 2 x stages - 1.
    """
    stages = num_stages(placement.ipu for placement in placements)
    needed = 2 * stages - 1 if stages > 1 else 1
    if gradient_accumulation < needed:
        raise PipeliningError(
            f"gradient_accumulation_steps {gradient_accumulation} does not fill a pipeline of {stages} stages, which "
            f"needs 2 x {stages} - 1 = {needed} micro-batches per weight update:\n{table(placements)}\n"
            f"Use gradient_accumulation_steps={needed} or more, or fewer IPUs in layers_per_ipu."
        )


def table(placements: Tuple[Placement, ...]) -> str:
    """One line for each IPU: the parts that begin there."""
    lines = []
    for ipu in sorted({0, *(placement.ipu for placement in placements)}):
        names = [p.name for p in placements if p.ipu == ipu]
        stem = ["stem"] if ipu == 0 else []
        lines.append(f"IPU {ipu}  {', '.join(stem + _ranges(names)) or 'nothing'}")
    return "\n".join(lines)


def _ranges(names: List[str]) -> List[str]:
    """encoder.layer.0, .1, .2 as encoder.layer.0-2."""
    out: List[str] = []
    for name in names:
        head, _, tail = name.rpartition(".")
        if out and tail.isdigit():
            before, _, last = out[-1].rpartition(".")
            start, _, end = last.partition("-")
            if before == head and (end or start).isdigit() and int(end or start) + 1 == int(tail):
                out[-1] = f"{head}.{start}-{tail}"
                continue
        out.append(name)
    return out


def check_settings(model: Any) -> None:
    """Raise PipeliningError where forward would draw random numbers in Python, which a compiled graph cannot."""
    config = getattr(model, "config", None)
    for name, needed in architecture_of(model).needs.items():
        value = getattr(config, name, needed)
        if value and value != needed:
            raise PipeliningError(
                f"{type(model).__name__}: config.{name}={value} draws random numbers in Python each time forward runs, "
                f"but a device compiles forward once. Set config.{name}={needed}."
            )
