"""The parts of a model in execution order: stem, repeated layers, head, and weights that stem and head share.

They are inferred from registration: layers are the items of the outermost ModuleLists of one class; a list of stages that hold
lists of blocks (Swin, ConvNeXt) is split into its blocks. What registration does not show is in architectures.py. Nothing is
imported from the model's library: any nn.Module with such lists has an anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Set, Tuple

from torch import nn

from ipu_trainer.errors import UserError
from ipu_trainer.pipelining.architectures import architecture_of


class PipeliningError(UserError):
    """A model that cannot be split as requested; the message describes the model's parts."""


@dataclass(frozen=True)
class Part:
    """A module with its name. Kinds: "layer", "bridge" (stem of a later stack), "head", "tied head"."""

    name: str
    module: nn.Module
    kind: str


@dataclass(frozen=True)
class Anatomy:
    """parts are in execution order; a module outside of them runs where the part before it runs.

    stacks: (name, number of layers). tied: names of head modules that use a weight of the stem.
    stem_weights: id() of the stem's parameters.
    """

    model_name: str
    stacks: Tuple[Tuple[str, int], ...]
    parts: Tuple[Part, ...]
    tied: Tuple[str, ...]
    stem_weights: Tuple[int, ...]

    @property
    def layers(self) -> Tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind == "layer")

    def describe(self) -> str:
        stacks = ", ".join(f"{name} ({count})" for name, count in self.stacks)
        return f"{self.model_name}: {len(self.layers)} layers in {stacks}; tied to the stem: {', '.join(self.tied) or 'nothing'}"


def find_anatomy(model: nn.Module) -> Anatomy:
    """The model's anatomy. Raises PipeliningError for one without repeated layers, or whose layers share weights."""
    row = architecture_of(model)
    name = type(model).__name__
    if row.shares_layers:
        raise PipeliningError(f"{name} cannot be split: {row.shares_layers}. Use layers_per_ipu=[-1] (one IPU).")
    stacks = _stacks(model)
    if not stacks:
        raise PipeliningError(
            f"{name} cannot be split: it has no repeated layers (a ModuleList with at least two items of one class); its "
            f"parts are {', '.join(child for child, _ in model.named_children()) or 'none'}. Use layers_per_ipu=[-1] "
            "(one IPU), or annotate it yourself with poptorch.BeginBlock and pass pipelining='none'."
        )
    if row.stack_order:
        stacks.sort(key=lambda stack: _position(stack[0], row.stack_order))
    _refuse_shared_layers(name, stacks)
    inside = {id(p) for _, layers in stacks for _, layer in layers for p in layer.parameters()}
    first = stacks[0][0]
    stem = _parameters_before(model, first, inside)
    parts: List[Part] = []
    for position, (stack, layers) in enumerate(stacks):
        if position:
            parts += [Part(n, m, "bridge") for n, m in _stem_of(model, stack, stacks)]
        parts += [Part(n, m, "layer") for n, m in layers]
    head = [part for part in _head(model, stacks, stem) if not part.name.endswith(row.not_head or ("\0",))]
    # A tied head runs where the stem is; what follows it stays there.
    parts += head
    return Anatomy(
        name,
        tuple((stack, len(layers)) for stack, layers in stacks),
        tuple(parts),
        tuple(part.name for part in head if part.kind == "tied head"),
        tuple(sorted(stem)),
    )


Layers = List[Tuple[str, nn.Module]]
Stacks = List[Tuple[str, Layers]]


def _stacks(model: nn.Module) -> Stacks:
    found: Stacks = []
    for name, module in model.named_modules():
        if any(name.startswith(outer + ".") for outer, _ in found) or not _is_stack(module):
            continue
        layers: Layers = []
        for index, item in module.named_children():
            layers += _blocks_of(f"{name}.{index}", item)
        found.append((name, layers))
    largest = max((_size(layers) for _, layers in found), default=0)
    # Lists of small modules (projections, prediction heads, convolutions of a feature extractor) are no stacks.
    return [(name, layers) for name, layers in found if _size(layers) * 10 >= largest and largest]


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
        return False
    kinds = {type(item) for item in module}
    return len(kinds) == 1 and not any(kind.__module__.startswith("torch.") for kind in kinds)


def _blocks_of(name: str, item: nn.Module) -> Layers:
    """The blocks of a stage of a pyramid, or the item itself.

    Stages of pyramids change the resolution: they have a downsampling module, or "Stage" in their class's name.
    """
    if not (hasattr(item, "downsample") or hasattr(item, "downsampling_layer") or "Stage" in type(item).__name__):
        return [(name, item)]
    stage_size = sum(parameter.numel() for parameter in item.parameters())
    for child_name, child in item.named_children():
        blocks = list(child.children())
        kinds = {type(block) for block in blocks}
        is_list = isinstance(child, (nn.ModuleList, nn.Sequential)) and len(kinds) == 1
        if not is_list or next(iter(kinds)).__module__.startswith("torch."):
            continue
        if 2 * sum(parameter.numel() for parameter in child.parameters()) > stage_size:
            return [(f"{name}.{child_name}.{i}", block) for i, block in enumerate(blocks)]
    return [(name, item)]


def _size(layers: Layers) -> int:
    return sum(parameter.numel() for _, layer in layers for parameter in layer.parameters())


def _position(name: str, order: Tuple[str, ...]) -> int:
    return next((i for i, end in enumerate(order) if name.endswith(end)), len(order))


def _refuse_shared_layers(model_name: str, stacks: Stacks) -> None:
    owner: Dict[int, str] = {}
    for _, layers in stacks:
        for name, layer in layers:
            for parameter_name, parameter in layer.named_parameters():
                other = owner.setdefault(id(parameter), name)
                if other != name:
                    raise PipeliningError(
                        f"{model_name} cannot be split: {other} and {name} share the weight {parameter_name}, and a "
                        "weight lives on one IPU. Use layers_per_ipu=[-1] (one IPU)."
                    )


def _parameters_before(model: nn.Module, first_stack: str, inside: Set[int]) -> Set[int]:
    """Weights of the stem: what is registered before the first layer, and the input embedding."""
    stem: Set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(first_stack + "."):
            break
        if id(parameter) not in inside:
            stem.add(id(parameter))
    embedding = getattr(model, "get_input_embeddings", lambda: None)
    try:
        module = embedding()
    except (NotImplementedError, AttributeError):
        module = None
    if isinstance(module, nn.Module):
        stem |= {id(parameter) for parameter in module.parameters()}
    return stem


def _ancestors(name: str) -> Iterator[Tuple[str, str]]:
    """(parent's name, child's name within it) from the root down to `name`."""
    words = name.split(".")
    for depth, word in enumerate(words):
        yield ".".join(words[:depth]), word


def _stem_of(model: nn.Module, stack: str, stacks: Stacks) -> Layers:
    """The embeddings that run before a later stack, such as a decoder's: in the branch that holds this stack alone."""
    others = [name for name, _ in stacks if name != stack]
    for parent, child in _ancestors(stack):
        if any(name.startswith(parent + "." if parent else "") for name in others):
            continue
        module = model.get_submodule(parent)
        before: Layers = []
        for name, sibling in module.named_children():
            if name == child:
                break
            if isinstance(sibling, nn.Embedding):
                before.append((f"{parent}.{name}", sibling))
        return before
    return []


def _head(model: nn.Module, stacks: Stacks, stem: Set[int]) -> Iterator[Part]:
    """The modules registered after the last layers, from the inside out: heads, and tied heads that use the stem's weights."""
    last = stacks[-1][0]
    holders = [name for name, _ in stacks]
    for parent, child in reversed(list(_ancestors(last))):
        after = False
        for name, sibling in model.get_submodule(parent).named_children():
            full = f"{parent}.{name}" if parent else name
            if after and not any(holder == full or holder.startswith(full + ".") for holder in holders):
                yield from _head_parts(full, sibling, stem)
            after = after or name == child


def _head_parts(name: str, module: nn.Module, stem: Set[int]) -> Iterator[Part]:
    parameters = {id(parameter) for parameter in module.parameters()}
    if not parameters:
        return
    if not parameters & stem:
        yield Part(name, module, "head")
        return
    children = list(module.named_children())
    if not children or any(id(p) in stem for p in module.parameters(recurse=False)):
        yield Part(name, module, "tied head")
        return
    for child_name, child in children:
        yield from _head_parts(f"{name}.{child_name}", child, stem)
