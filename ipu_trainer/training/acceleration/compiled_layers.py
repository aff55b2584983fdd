"""What makes a GPU fast without changing what is computed: layers compiled one by one, projections of one input as one.

Compiling a whole Transformers model traces what is better left out (an attention mask that is all true, caches); compiling
each repeated layer does not, and compiles once for all of them. Parameters keep their names and stay apart, so checkpoints
and optimizer states are what they were, and everything is undone when training ends.
"""

from __future__ import annotations

import contextlib
import importlib
from types import MethodType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.training.acceleration.padded_lm_head import aligned_output_product
from ipu_trainer.training.finetuning.stochastic_depth import has_only_skipping, kept_samples, mixed, skipped_share
from ipu_trainer.training.layers import is_plain_linear, layer_stacks

# Names of the three projections in an attention module, as Transformers models have them.
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))

# What makes tokens of patches before a stack of layers: joined, moved and rounded piece by piece if it is not compiled.
_PATCH_EMBEDDINGS = ("ViTEmbeddings", "DeiTEmbeddings", "ViTMSNEmbeddings")

_VARIANTS = 32  # of a compiled layer

# Losses of Transformers over a whole vocabulary.
_VOCABULARY_LOSSES = ("ForCausalLMLoss", "ForMaskedLMLoss")


@contextlib.contextmanager
def compiled_layers(model: nn.Module, required: bool, backend: str = "inductor") -> Iterator[int]:
    """Inside the block each repeated layer of `model` is compiled; yields how many.

    So are embeddings of patches and a loss over a vocabulary. An unaligned product with a vocabulary is padded besides
    (output_product.py), but not on a CPU, where that does not pay.

    required: raise ValueError for a model without repeated layers, instead of leaving it as it is.
    """
    layers = [layer for _, stack in layer_stacks(model) for layer in stack]
    if required and not layers:
        raise ValueError(
            f"{type(model).__name__} has no repeated layers (a ModuleList of one class) to compile. Use --compile model "
            "or off."
        )
    embeddings = [module for module in model.modules() if type(module).__name__ in _PATCH_EMBEDDINGS]
    # What somebody else compiled stays.
    own = [part for part in (*layers, *embeddings) if part._compiled_call_impl is None]
    loss = getattr(model, "loss_function", None)
    over_vocabulary = getattr(loss, "__name__", "") in _VOCABULARY_LOSSES
    for part in own:
        part._compiled_call_impl = _compiled(part, backend)
    if over_vocabulary:  # eager, its float32 copies of the logits cost as much as several layers
        model.loss_function = torch.compile(loss, backend=backend)  # type: ignore[assignment, arg-type]
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    try:
        with contextlib.nullcontext() if on_cpu else aligned_output_product(model, backend), _more_variants():
            yield len(layers)
    finally:
        for part in own:
            part._compiled_call_impl = None
        if over_vocabulary:
            model.loss_function = loss  # type: ignore[assignment]


def _compiled(layer: Any, backend: str) -> Callable[..., Any]:
    """What `layer` computes as one compiled function, for `layer._compiled_call_impl`.

    Stochastic depth is part of it: torch.compile takes a module's forward function and each of its hooks apart, and compiles them
    anew for each rate. While the layer has any other hook it is called as torch does.
    """
    joins = getattr(layer.forward, "joins_layers", False)  # kernels/forwards.py
    skipped = skipped_share(layer)
    skips = skipped is not None
    taken_apart: Callable[..., Any] = torch.compile(layer._call_impl, backend=backend)
    if not joins and not skips:
        return taken_apart
    # A number would be a constant of the compiled function, and each layer has its own.
    rate = torch.tensor(skipped or 0.0, dtype=torch.float64, device=next(layer.parameters()).device)

    def at_once(hidden: Any, *given: Any, **named: Any) -> Any:
        if not skips or not layer.training:
            return layer.forward(hidden, *given, **named)
        kept = kept_samples(hidden[0] if isinstance(hidden, tuple) else hidden, rate)
        if joins:
            return layer.forward(hidden, *given, kept=kept, **named)
        return mixed(hidden, layer.forward(hidden, *given, **named), kept)

    compiled = torch.compile(at_once, backend=backend)

    def call(*given: Any, **named: Any) -> Any:
        if not given or not has_only_skipping(layer) or skipped_share(layer) != skipped:
            return taken_apart(*given, **named)
        if joins:
            named["hands_on"] = _takes_unsummed(layer.next_layer)
        return compiled(*given, **named)

    return call


def _takes_unsummed(layer: Any) -> bool:
    """Nobody looks at what the layer is given; a reentrant checkpoint would lose the gradients of what stands in a tuple."""
    return layer is not None and has_only_skipping(layer) and not layer.gradient_checkpointing


def _more_variants() -> Any:
    """Layers share one compiled function: first, middle and last ones, whole and smaller batches, training and evaluation.

    Beyond torch's limit of eight further ones would not be compiled.
    """
    config: Any = importlib.import_module("torch._dynamo.config")
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return config.patch(limit, max(_VARIANTS, getattr(config, limit)))


@contextlib.contextmanager
def fused_projections(model: nn.Module) -> Iterator[int]:
    """Inside the block query, key and value of one input are one matrix product; yields how many attentions do it.

    Weights stay three parameters, put beside each other for the product. Where the three have different inputs
    (cross-attention) each is computed alone, as before.
    """
    groups = [group for module in model.modules() for group in [projections_of(module)] if group is not None]
    for group in groups:
        shared = _OneProduct(group)
        for position, linear in enumerate(group):
            linear.__dict__.update(_one_product=shared, _position=position, forward=_forward_of_part(linear))
    try:
        yield len(groups)
    finally:
        for group in groups:
            for linear in group:
                for name in ("_one_product", "_position", "forward"):
                    del linear.__dict__[name]


def projections_of(module: nn.Module) -> Optional[Tuple[nn.Linear, nn.Linear, nn.Linear]]:
    """Query, key and value of an attention module, if they are plain linear layers of inputs of one width; else None."""
    for names in _PROJECTIONS:
        found: List[Any] = [getattr(module, name, None) for name in names]
        if all(is_plain_linear(linear) for linear in found):
            alike = {(linear.in_features, linear.bias is None) for linear in found}
            return tuple(found) if len(alike) == 1 else None  # type: ignore[return-value]
    return None


def _forward_of_part(linear: nn.Linear) -> Any:
    """A bound method: a copy of the model made meanwhile has it with the copy's own weights, a pickled one has its class's."""

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = self._one_product.part(self._position, hidden)
        return part

    return MethodType(forward, linear)


class _OneProduct:
    """Whichever of the three is asked first computes all, and the others take their parts of the same input."""

    def __init__(self, linears: Tuple[nn.Linear, ...]) -> None:
        self.linears = linears
        self.sizes = [linear.out_features for linear in linears]
        self.input: Optional[torch.Tensor] = None
        self.parts: Dict[int, Any] = {}

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "input": None, "parts": {}}

    def part(self, position: int, hidden: torch.Tensor) -> Any:
        if self.input is hidden and position in self.parts:
            part = self.parts.pop(position)
            if not self.parts:
                self.input = None
            return part
        weight = torch.cat([linear.weight for linear in self.linears])
        biases: List[torch.Tensor] = [linear.bias for linear in self.linears if linear.bias is not None]
        product = functional.linear(hidden, weight, torch.cat(biases) if biases else None)
        parts = torch.split(product, self.sizes, dim=-1)
        self.input = hidden
        self.parts = {other: part for other, part in enumerate(parts) if other != position}
        return parts[position]
