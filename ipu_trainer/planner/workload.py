"""What a model asks of a machine, per repeated layer: measured by running its forward pass on torch's meta device.

Nothing is looked up by the model's name. A dispatch mode sees every operator with its shapes and autograd's hooks see
what is kept for backward, so encoders, decoders, encoder-decoders and pyramids are all measured alike, without memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
import transformers

from ipu_trainer.compat.torch_operators import TorchDispatchMode, operator_name, storage_id
from ipu_trainer.compat.transformers_training import use_eager_attention
from ipu_trainer.errors import UserError
from ipu_trainer.pipelining.anatomy import find_anatomy
from ipu_trainer.planner.constants import TASKS
from ipu_trainer.simulator.analysis.flops import device_bytes, flops_of

_LINEAR = ("mm", "addmm", "convolution", "_convolution")


@dataclass(frozen=True)
class PartCost:
    """One part for one sample, forward only.

    flops counts a multiply-add as two, products the operators that did them. linear_elements are outputs of linear products and
    convolutions, every one of which the element-wise work around it goes over; softmax_elements are attention probabilities.
    saved_bytes is what autograd keeps, without parameters; mask_bytes the part of it that is dropout masks, which PopART draws
    again; output_bytes what the part hands on; logit_elements those of a head.
    """

    name: str
    kind: str
    flops: int = 0
    products: int = 0
    linear_elements: int = 0
    softmax_elements: int = 0
    parameters: int = 0
    saved_bytes: int = 0
    mask_bytes: int = 0
    output_bytes: int = 0
    logit_elements: int = 0
    at_stem: bool = False  # runs where the stem is, because it uses the stem's weights


@dataclass(frozen=True, eq=False)
class Workload:
    """A model's parts in execution order: stem, layers (and bridges), heads. family is the config's model_type.

    tokens are those of a sample, 0 for images; modality is text, image or audio. Compared and hashed by identity, so that what
    follows from one can be kept.
    """

    model_name: str
    family: str
    parts: Tuple[PartCost, ...]
    tokens: int
    modality: str = "text"

    @property
    def layers(self) -> Tuple[PartCost, ...]:
        return tuple(part for part in self.parts if part.kind == "layer")

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.parts)


def measure(
    model_config: Any,
    task: Optional[str] = None,
    sequence_length: Optional[int] = None,
    target_length: Optional[int] = None,
) -> Workload:
    """The workload of a Transformers config. task is one of TASKS; without it the config's `architectures` decides.

    sequence_length counts tokens (samples of sound for audio models; default 128, 16,000), target_length those of a decoder
    (default as sequence_length); images have the config's size.
    Raises UserError where the model cannot be built, cut or run from shapes alone.
    """
    config = type(model_config).from_dict(model_config.to_dict())
    use_eager_attention(config)  # attention probabilities exist on an IPU
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    for name in ("apply_spec_augment", "use_cache"):
        if getattr(config, name, False):
            setattr(config, name, False)
    model = _build(config, task)
    inputs, tokens = _inputs(model, config, sequence_length, target_length)
    meter = _Meter(model)
    try:
        meter.run(inputs)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{type(model).__name__} cannot be measured from shapes alone: {str(error).splitlines()[0]}. "
            "Plan with the nearest model whose forward pass does not depend on values."
        ) from error
    modality = {"pixel_values": "image", "input_values": "audio", "input_features": "audio"}
    name = modality.get(str(model.main_input_name), "text")
    return Workload(type(model).__name__, str(config.model_type), tuple(meter.parts), tokens, name)


def _build(config: Any, task: Optional[str]) -> torch.nn.Module:
    if task is not None and task not in TASKS:
        raise UserError(f"task {task!r} is not one of {', '.join(TASKS)}. Choose what the model is trained for.")
    names = [TASKS[task]] if task else list(getattr(config, "architectures", None) or ["AutoModel"])
    chosen = getattr(transformers, names[0], None)
    if chosen is None:
        raise UserError(f"architecture {names[0]!r} is not in transformers {transformers.__version__}. Give --task.")
    # Weights on the meta device have no values, and torch 2.0 has no meta kernel for some initialisers.
    no_init = getattr(transformers.modeling_utils, "no_init_weights", contextlib.nullcontext)
    try:
        with _Watch(None), torch.device("meta"), no_init():
            model = chosen.from_config(config) if names[0].startswith("Auto") else chosen(config)
    except NotImplementedError as error:
        raise UserError(
            f"{names[0]} cannot be built without values by torch {torch.__version__}: {str(error).splitlines()[0][:90]}. "
            "Use a newer torch for planning."
        ) from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    built: torch.nn.Module = model.half().train()
    return built


def _inputs(model: Any, config: Any, length: Optional[int], target: Optional[int]) -> Tuple[Dict[str, Any], int]:
    name = model.main_input_name
    for word, value in (("sequence_length", length), ("target_length", target)):
        if value is not None and value < 1:
            raise UserError(f"{word} {value} must be at least 1. Give the tokens of one sample.")
    if target is not None and not getattr(config, "is_encoder_decoder", False):
        raise UserError(f"target_length {target}: {type(model).__name__} reads no decoder's tokens. Leave it out.")
    if length is not None and name in ("pixel_values", "input_features"):
        what = "images" if name == "pixel_values" else "sound"
        raise UserError(
            f"sequence_length {length}: {type(model).__name__} reads {what} of its configuration's size. Leave it out, or "
            "change the configuration."
        )
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(config, "num_channels", 3)
        return {name: torch.empty(1, channels, height, width, dtype=torch.half, device="meta")}, 0
    if name == "input_values":
        return {name: torch.empty(1, length or 16000, dtype=torch.half, device="meta")}, length or 16000
    if name == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 1500))
        bins = int(getattr(config, "num_mel_bins", 80))
        inputs = {name: torch.empty(1, bins, frames, dtype=torch.half, device="meta")}
    else:
        limit = getattr(config, "max_position_embeddings", None)
        if isinstance(limit, int) and length is not None and length > limit:
            raise UserError(
                f"sequence_length {length} is more than max_position_embeddings {limit}. Give {limit} or less."
            )
        inputs = {"input_ids": torch.zeros(1, length or 128, dtype=torch.long, device="meta")}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.zeros(1, target or length or 128, dtype=torch.long, device="meta")
    return inputs, length or 128


class _Meter:
    """Runs forward once; every operator is booked on the part that began last."""

    def __init__(self, model: Any) -> None:
        self.model = model
        anatomy = find_anatomy(model)
        self.parts = [PartCost("stem", "stem")]
        for part in anatomy.parts:
            shared = any(id(parameter) in anatomy.stem_weights for parameter in part.module.parameters())
            self.parts.append(PartCost(part.name, part.kind, at_stem=part.kind in ("bridge", "tied head") and shared))
        self._modules = [part.module for part in anatomy.parts]
        self._current = 0
        self._owned = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self._storages = {storage_id(t) for t in self._owned.values()}
        self._keep: List[Any] = []  # addresses of storages are only unique while they live
        self._masks: Set[int] = set()
        self._saved: Set[Tuple[int, int]] = set()
        seen: Set[int] = set()
        for index, module in enumerate(self._modules, start=1):
            if self.parts[index].kind == "tied head":  # tied weights belong to the stem, which uses them first
                continue
            new = [p for p in module.parameters() if id(p) not in seen]
            seen.update(id(p) for p in new)
            self.parts[index] = dataclasses.replace(self.parts[index], parameters=sum(p.numel() for p in new))
        # What no part owns is booked where it is used first: a norm between two stacks runs where the first one ends.
        self._unplaced = {storage_id(p): p.numel() for p in self.model.parameters() if id(p) not in seen}

    def run(self, inputs: Dict[str, Any]) -> None:
        hooks: List[Any] = []
        for index, module in enumerate(self._modules, start=1):
            hooks.append(module.register_forward_pre_hook(functools.partial(self._enter, index)))
            hooks.append(module.register_forward_hook(functools.partial(self._leave, index)))
        try:
            with _Watch(self), torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                self._keep.append(self.model(**inputs))
            self._current = 0
            self.add(parameters=sum(self._unplaced.values()))
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, **amounts: int) -> None:
        part = self.parts[self._current]
        self.parts[self._current] = dataclasses.replace(
            part, **{name: getattr(part, name) + amount for name, amount in amounts.items()}
        )

    def count(self, function: Any, args: Sequence[Any], result: Any) -> None:
        name = operator_name(function)
        for argument in args if self._unplaced else ():
            if isinstance(argument, torch.Tensor):
                self.add(parameters=self._unplaced.pop(storage_id(argument), 0))
        flops = flops_of(function, args, result)
        if flops:
            linear = result.numel() if name in _LINEAR else 0
            self.add(flops=flops, products=1, linear_elements=linear)
        elif name == "_softmax":
            self.add(softmax_elements=result.numel())
        elif name == "bernoulli_":
            self._masks.add(storage_id(result))
            self._keep.append(result.detach())
        elif name == "native_dropout":
            self._masks.add(storage_id(result[1]))
            self._keep.append(result[1].detach())

    def _enter(self, index: int, module: Any, args: Any) -> None:
        self._current = index

    def _leave(self, index: int, module: Any, args: Any, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, torch.Tensor):
            part = self.parts[index]
            logits = output.numel() if part.kind in ("head", "tied head") else 0
            self.parts[index] = dataclasses.replace(part, output_bytes=device_bytes(output), logit_elements=logits)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = storage_id(tensor)
        key = (storage, int(tensor.storage_offset()))
        if storage not in self._storages and key not in self._saved:
            self._saved.add(key)
            self._keep.append(tensor.detach())
            size = device_bytes(tensor)
            self.add(saved_bytes=size, mask_bytes=size if storage in self._masks else 0)
        return tensor.detach()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books operators on a meter. A value read from a tensor that has none is 0: masks and drop rates ask for some."""

    def __init__(self, meter: Optional[_Meter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator_name(func) == "_local_scalar_dense" and args[0].device.type == "meta":
            return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        if operator_name(func) == "_weight_norm_interface" and args[0].device.type == "meta":
            result: Any = (torch.empty_like(args[0]), torch.empty_like(args[1]))  # torch 2.0 has no shapes for it
        else:
            result = func(*args, **(kwargs or {}))
        if self._meter is not None:
            self._meter.count(func, args, result)
        return result
