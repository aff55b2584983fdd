"""Differences between transformers 4.29.2 (the Pod stack) and 5.x. The rest of the package compares no versions."""

from __future__ import annotations

import contextlib
import inspect
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Union

import torch
import transformers
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ipu_trainer.compat.argument_names import INSTALLED, OTHER_NAMES
from ipu_trainer.compat.internals import Internal
from ipu_trainer.errors import UserError
from ipu_trainer.stored_weights import StoredTensor, stored_tensors

LABEL_SHIFT = Internal(
    "transformers.Trainer._loss_shifts_labels",
    "Trainer keeps to itself how it counts labels",
    "5.24",
    "5.24",
    "tests/training/test_accumulation.py::test_a_head_takes_the_same_step_however_its_samples_are_cut",
)


def field_name(name: str) -> str:
    """The installed release's name of a field of TrainingArguments that 5.x calls `name`.

    For "warmup_ratio", 4.29's name, it is warmup_steps in 5.x, which reads a value below 1 as a ratio.
    """
    if name == "warmup_ratio":
        return name if name in INSTALLED else "warmup_steps"
    return name if name in INSTALLED else OTHER_NAMES.get(name, name)


def has_only_cpus() -> bool:
    """Whether PyTorch finds no GPU or other accelerator on this machine."""
    others = getattr(torch, "accelerator", None)  # since torch 2.6
    return not torch.cuda.is_available() and not (others is not None and others.is_available())


def training_defaults(**values: Any) -> Dict[str, Any]:
    """TrainingArguments values by 5.x's names, renamed for the installed release.

    save_safetensors is left out in 5.x, which always saves safetensors.
    """
    named = {field_name(name): value for name, value in values.items()}
    if "save_safetensors" not in INSTALLED:
        named.pop("save_safetensors", None)
    # 4.29's default is its own deprecated AdamW, which no device implements bit for bit.
    if TrainingArguments.__dataclass_fields__["optim"].default == "adamw_hf":
        named.setdefault("optim", "adamw_torch")
    return named


def is_deprecated_adamw(optimizer: Any) -> bool:
    """Whether it is the AdamW of transformers 4.29, which decays weights after the update instead of before it."""
    return type(optimizer).__name__ == "AdamW" and type(optimizer).__module__.startswith("transformers.")


@contextlib.contextmanager
def undivided_loss(trainer: Any) -> Iterator[None]:
    """Inside the block the stock training_step does not divide the loss by the number of micro-batches."""
    documented = "loss_is_scaled_for_ga"  # since 5.24
    owner: Any = trainer if hasattr(Trainer, "get_batch_samples") else trainer.args
    older = "current_gradient_accumulation_steps" if owner is trainer else "gradient_accumulation_steps"
    name, value = (documented, True) if hasattr(Trainer, documented) else (older, 1)
    given = getattr(owner, name, 1)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, given)


def loss_shifts_labels(trainer: Any) -> bool:
    """Whether the model's loss compares each label with the token before it: Trainer of 5.24 knows, else by the class."""
    shifts = getattr(trainer, "_loss_shifts_labels", None)
    return (
        type(trainer.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if shifts is None else bool(shifts)
    )


def wants_gradient_checkpointing(args: TrainingArguments) -> bool:
    """5.x calls it activation_checkpointing."""
    return bool(getattr(args, field_name("activation_checkpointing")))


# Methods that got arguments since 4.29: name -> number of arguments in 4.29.
_GREW = {
    "compute_loss": 3,
    "training_step": 2,
    "log": 1,
    "get_batch_samples": 2,
    "create_optimizer": 0,
    "get_optimizer_cls_and_kwargs": 1,
    "_get_train_sampler": 0,
}


def adapt_old_overrides(trainer: Any, base: type) -> None:
    """Let the installed loop call methods that a subclass of `base` overrode with the signatures of 4.29.

    Arguments that they do not take are dropped: the number of labels (compute_loss, training_step) and the start time (log).
    A compute_loss without the number of labels returns means, so labels are not counted for it.
    """
    for name, positions in _GREW.items():
        method = getattr(type(trainer), name, None)
        overridden = method is not None and method is not getattr(base, name, None)
        parameters = _own_parameters(trainer, name) if overridden else None
        if parameters is not None and len(parameters) <= positions:
            setattr(trainer, name, _without_new_arguments(getattr(trainer, name), parameters))
            if name == "compute_loss":
                trainer.model_accepts_loss_kwargs = False


def refuse_old_overrides(trainer: Any, base: type) -> None:
    """Raise UserError for a method that a subclass of `base` overrode and that takes too few of the installed loop's arguments.

    adapt_old_overrides() handles the others. New arguments of these are not the last ones, so they cannot be dropped.
    """
    overridden = {name for cls in type(trainer).__mro__ if cls not in base.__mro__ for name in vars(cls)}
    for name in sorted(overridden - set(_GREW) - {"__init__"}):
        stock, parameters = getattr(Trainer, name, None), None
        if inspect.isfunction(stock):
            parameters = _own_parameters(trainer, name)
        if parameters is None:
            continue
        needed = [
            item.name
            for item in list(inspect.signature(stock).parameters.values())[1:]  # type: ignore[arg-type]  # it is one
            if item.default is inspect.Parameter.empty and item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        if len(parameters) < len(needed):
            raise UserError(
                f"{type(trainer).__name__}.{name} takes {', '.join(item.name for item in parameters) or 'nothing'}, but "
                f"transformers {transformers.__version__} calls it with {', '.join(needed)}. Give it these parameters."
            )


def _own_parameters(trainer: Any, name: str) -> Any:
    """Parameters of a trainer's method; None for *args or **kwargs, or where it is no method."""
    method = getattr(trainer, name, None)
    if not inspect.isroutine(method):
        return None
    parameters = list(inspect.signature(method).parameters.values())
    kinds = {parameter.kind for parameter in parameters}
    takes_any = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & kinds
    return None if takes_any else parameters


def _without_new_arguments(method: Any, parameters: Any) -> Any:
    names = {parameter.name for parameter in parameters}

    def adapted(*positional: Any, **named: Any) -> Any:
        known = {name: value for name, value in named.items() if name in names}
        return method(*positional[: len(parameters)], **known)

    return adapted


def _check_complete(model: PreTrainedModel, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raise UserError for tensors that Trainer, which loads with strict=False, would leave as they are."""
    state = model.state_dict(keep_vars=True)
    there = {value.data_ptr() for name, value in state.items() if name in stored}  # tied tensors are stored once
    parameters = dict(model.named_parameters())  # buffers are computed, and not every release stores them
    lost = sorted(name for name, value in parameters.items() if name not in stored and value.data_ptr() not in there)
    other = sorted(name for name, tensor in stored.items() if tensor.shape != tuple(state[name].shape))
    if lost or other:
        raise UserError(
            f"{folder} does not hold the weights of this {type(model).__name__}: missing {lost[:5]}, of other shape {other[:5]}. "
            "Resume with the model that was trained, or from another checkpoint."
        )


def load_renamed_weights(model: Any, checkpoint: Union[str, os.PathLike[str]]) -> bool:
    """Load a checkpoint whose tensors have other names than the model's; returns False, and loads nothing, if the names agree.

    transformers 5 renames the layers of some models (ViT's among them) and saves them under their old names. Its Trainer
    resumes with load_state_dict(strict=False), which then loads almost nothing and warns (seen on 5.23.0): the run would
    continue from its initial weights. from_pretrained() knows the renaming, so it reads the checkpoint here.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    folder = Path(checkpoint)
    stored = stored_tensors(folder)
    if stored is None:
        return False
    if set(stored) <= set(model.state_dict()):
        _check_complete(model, stored, folder)
        return False
    read, report = type(model).from_pretrained(
        str(folder), config=model.config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise UserError(
            f"{folder} does not hold the weights of this {type(model).__name__}: missing {sorted(report['missing_keys'])[:5]}, "
            f"of other shape {sorted(map(str, report['mismatched_keys']))[:5]}. Resume with the model that was trained."
        )
    model.load_state_dict(read.state_dict())
    return True
