"""Pretrained weights: from_pretrained, but weights that are missing outside of a new head are an error.

from_pretrained itself warns and continues. A model of another family then has nothing of its checkpoint but the name.
"""

from __future__ import annotations

import pickle
from typing import Any, Collection, List, NamedTuple, Sequence, Set, Tuple

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig

from ipu_trainer.errors import UserError, user_input
from ipu_trainer.training.layers import classifiers_of

# What from_pretrained and configurations call the type of weights: 4.29 torch_dtype, 5.x dtype.
DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


class Loaded(NamedTuple):
    """A model with the names of its tensors that the file lacks or has in another shape, and of those that it has no place for."""

    model: Any
    missing: Set[str]
    reshaped: Set[str]
    unused: Set[str]

    @property
    def new(self) -> Set[str]:
        return self.missing | self.reshaped


def load_pretrained(auto_class: Any, source: str, next_move: str, **options: Any) -> Tuple[Any, Set[str]]:
    """(model, new) of load_reported()."""
    loaded = load_reported(auto_class, source, next_move, **options)
    return loaded.model, loaded.new


def load_reported(
    auto_class: Any, source: str, next_move: str, new_parts: Sequence[str] = (), **options: Any
) -> Loaded:
    """The model in float32 whatever the file holds. options: for from_pretrained.

    New are tensors of the head alone, which lies outside the base model, and of the base model's new_parts. Raises UserError
    where another tensor is missing or has another shape, and for files of weights that cannot be read; next_move ends these
    messages.
    """
    try:
        with user_input():
            model, report = auto_class.from_pretrained(
                source, **{DTYPE: torch.float32}, ignore_mismatched_sizes=True, output_loading_info=True, **options
            )
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"the weights in {source} cannot be read ({_first_line(error)}). Are the files whole, and no pointers of git lfs?"
        ) from error
    missing = _missing(model, report["missing_keys"])
    mismatched = {str(item[0]) for item in report["mismatched_keys"]}
    is_head = _head(model, new_parts)
    lost = sorted(name for name in missing if not is_head(name))
    reshaped = sorted(name for name in mismatched if not is_head(name))
    if lost or reshaped:
        total = len(model.state_dict())
        found = [f"{len(lost)} of its {total} tensors are not there, such as {lost[0]}"] if lost else []
        if reshaped:
            found.append(f"{len(reshaped)} of {total} have another shape, such as {reshaped[0]}")
        raise UserError(
            f"{source} (model_type {model.config.model_type}) does not hold the weights of a {type(model).__name__}: "
            f"{', and '.join(found)}. They would be random. {next_move}"
        )
    return Loaded(model, missing, mismatched, {str(name) for name in report.get("unexpected_keys", ())})


def _missing(model: Any, names: Collection[str]) -> Set[str]:
    """Without those that share the memory of a tensor that was loaded (tied embeddings), and without tables of positions."""
    state = model.state_dict(keep_vars=True)
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in names}
    tables = {name for name, tensor in state.items() if not tensor.is_floating_point()}
    return {
        name for name in names if name not in tables and (name not in state or state[name].data_ptr() not in loaded)
    }


def _head(model: Any, new_parts: Sequence[str]) -> Any:
    """Whether a tensor is the head's: outside the base model or of its classifier; without a base, of the output embeddings."""
    prefix = model.base_model_prefix
    base = getattr(model, prefix, None)
    if isinstance(base, torch.nn.Module):
        inside = tuple(f"{prefix}.{name}." for name in (*classifiers_of(base), *new_parts))
        return lambda name: not name.startswith(prefix + ".") or name.startswith(inside)
    output = model.get_output_embeddings()
    heads: List[str] = [name for name, part in model.named_modules() if part is output and name]
    return lambda name: any(name.startswith(head + ".") for head in heads)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
