"""Each repeated layer of a model compiled alone.

Compiling a whole Transformers model traces what is better left out (an attention mask that is all true, caches); compiling
each repeated layer does not, and compiles once for all of them. Parameters keep their names, so checkpoints and optimizer states
do not change, and everything is undone when training ends.

A layer's forward may defer its last residual add to the layer behind it, as those of fused_kernels do. Such a forward has an
attribute `add_and_normalise`, takes hidden states with or without a deferred add, and takes `drop_mask`, stochastic depth's mask,
and `defers`, whether the layer behind it takes a deferred add. Its layer has that layer as `next_layer`.

The LM-head GEMM of an unaligned vocabulary is padded with zeros. Tensor cores read rows of 16 bytes: 50,257 numbers in half
precision are not a multiple of that, and cuBLAS falls back to kernels that take six times as long (docs/performance.md). The
padding is cut off again, so logits do not change.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Optional

import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.compat.torch_acceleration import compiled_call, recompile_limit, set_compiled_call
from ipu_trainer.errors import UserError
from ipu_trainer.training.finetuning.stochastic_depth import (
    apply_drop_path,
    drop_path_mask,
    drop_path_rate,
    has_only_drop_path,
)
from ipu_trainer.training.layers import bind_forward, is_plain_linear, layer_stacks

# What turns patches into tokens in front of a stack of layers: many small kernels if it is not compiled.
_PATCH_EMBEDDINGS = ("ViTEmbeddings", "DeiTEmbeddings", "ViTMSNEmbeddings")
# Layers share one compiled function, of which torch keeps eight variants: too few for first, middle and last layers, whole and
# smaller batches, training and evaluation.
_VARIANTS = 32
# Losses of Transformers over a whole vocabulary.
_VOCABULARY_LOSSES = ("ForCausalLMLoss", "ForMaskedLMLoss")


@contextlib.contextmanager
def compiled_layers(model: nn.Module, required: bool, backend: str = "inductor") -> Iterator[int]:
    """Inside the block each repeated layer of `model` is compiled; yields how many.

    Patch embeddings and a loss over a vocabulary are compiled too. On a GPU an unaligned LM head is padded besides.

    required: raise ValueError for a model without repeated layers, instead of leaving it as it is.
    """
    layers = [layer for _, stack in layer_stacks(model) for layer in stack]
    if required and not layers:
        raise UserError(
            f"{type(model).__name__} has no repeated layers (a ModuleList of one class) to compile. Use --compile model "
            "or off."
        )
    embeddings = [module for module in model.modules() if type(module).__name__ in _PATCH_EMBEDDINGS]
    # Modules that the user compiled stay as they are.
    compiled = [part for part in (*layers, *embeddings) if compiled_call(part) is None]
    loss = getattr(model, "loss_function", None)
    over_vocabulary = getattr(loss, "__name__", "") in _VOCABULARY_LOSSES
    for part in compiled:
        _compile(part, backend)
    if over_vocabulary:  # eager, its float32 copies of the logits cost as much as several layers
        model.loss_function = torch.compile(loss, backend=backend)  # type: ignore[assignment, arg-type]
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    try:
        with contextlib.nullcontext() if on_cpu else padded_lm_head(model, backend), recompile_limit(_VARIANTS):
            yield len(layers)
    finally:
        for part in compiled:
            set_compiled_call(part, None)
        if over_vocabulary:
            model.loss_function = loss  # type: ignore[assignment]


def _compile(layer: Any, backend: str) -> None:
    """Compile `layer` in place, with its stochastic depth.

    torch compiles a module's forward and each of its hooks apart, and hooks again for each rate. So a layer whose only hook is
    stochastic depth is compiled as one function; with any other hook it is called as torch compiles it.
    """
    layer.compile(backend=backend)
    defers_add = hasattr(layer.forward, "add_and_normalise")
    given_rate = drop_path_rate(layer)
    drops = given_rate is not None
    if not defers_add and not drops:
        return
    with_hooks: Any = compiled_call(layer)
    # A float, also in the closure, would be a constant of the compiled function, and each layer has its own.
    rate = torch.tensor(given_rate or 0.0, dtype=torch.float64, device=next(layer.parameters()).device)

    def with_drop_path(hidden: Any, *given: Any, **named: Any) -> Any:
        if not drops or not layer.training:
            return layer.forward(hidden, *given, **named)
        mask = drop_path_mask(hidden[0] if isinstance(hidden, tuple) else hidden, rate)
        if defers_add:
            return layer.forward(hidden, *given, drop_mask=mask, **named)
        return apply_drop_path(hidden, layer.forward(hidden, *given, **named), mask)

    as_one: Callable[..., Any] = torch.compile(with_drop_path, backend=backend)

    def call(*given: Any, **named: Any) -> Any:
        if not given or not has_only_drop_path(layer) or drop_path_rate(layer) != given_rate:
            return with_hooks(*given, **named)
        if defers_add:
            named["defers"] = _takes_deferred_add(layer.next_layer)
        return as_one(*given, **named)

    set_compiled_call(layer, call)


def _takes_deferred_add(layer: Any) -> bool:
    """Not with hooks, which read sums; nor with a reentrant checkpoint, which loses the gradients of tensors in a tuple."""
    return layer is not None and has_only_drop_path(layer) and not layer.gradient_checkpointing


ALIGNED = 8  # numbers of half precision in 16 bytes: GEMMs are slow where rows are no multiple of it
_MULTIPLE = 64  # as wide as one tile's step, whatever kernel is chosen


@contextlib.contextmanager
def padded_lm_head(model: nn.Module, backend: str = "inductor") -> Iterator[Optional[nn.Linear]]:
    """Inside the block the GEMM of an unaligned LM head is padded; yields the LM head.

    Outputs are those of the layer, as a view into a wider tensor, and gradients are the same. Yields None, and changes nothing,
    for a model without an LM head, with an aligned one, or with one that is more than nn.Linear (an adapter, a hook).
    """
    linear = _unaligned_lm_head(model)
    if linear is not None:
        product = torch.compile(padded_linear, backend=backend)
        bind_forward(linear, lambda self, hidden: product(hidden, self.weight, self.bias))
    try:
        yield linear
    finally:
        if linear is not None:
            del linear.__dict__["forward"]


def padded_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """functional.linear(hidden, weight, bias), computed with the weight padded to a multiple of 64 rows."""
    rows = weight.shape[0]
    missing = -rows % _MULTIPLE
    padded_bias = None if bias is None else functional.pad(bias, (0, missing))
    return functional.linear(hidden, functional.pad(weight, (0, 0, 0, missing)), padded_bias)[..., :rows]


def _unaligned_lm_head(model: nn.Module) -> Optional[nn.Linear]:
    find = getattr(model, "get_output_embeddings", None)
    try:
        linear: Any = None if find is None else find()
    except NotImplementedError:
        return None
    return linear if is_plain_linear(linear) and linear.out_features % ALIGNED else None
