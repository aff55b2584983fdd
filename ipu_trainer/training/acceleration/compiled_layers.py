"""Each repeated layer of a model compiled alone.

Compiling a whole Transformers model traces what is better left out (an attention mask that is all true, caches); compiling
each repeated layer does not, and compiles once for all of them. Parameters keep their names and stay apart, so checkpoints
and optimizer states are what they were, and everything is undone when training ends.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Callable, Iterator

import torch
from torch import nn

from ipu_trainer.training.acceleration.padded_lm_head import aligned_output_product
from ipu_trainer.training.finetuning.stochastic_depth import has_only_skipping, kept_samples, mixed, skipped_share
from ipu_trainer.training.layers import layer_stacks

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
