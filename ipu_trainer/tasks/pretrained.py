"""Weights of a model or of a finished run: from_pretrained, but with a contract.

from_pretrained itself warns and continues with random tensors. Here
    a model     may lack its head, and nothing else; what its file has of repeated layers, the model has too
    a run       has all tensors, and no others, in one type
and no tensor of either holds NaN, or integers where the model has floating-point numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from transformers import PretrainedConfig

from ipu_trainer.errors import UserError, first_line, user_input
from ipu_trainer.json_files import read_json
from ipu_trainer.stored_weights import FLOATS, WEIGHTS, StoredTensor, stored_bytes, stored_tensors
from ipu_trainer.training.layers import classifiers_of

TRAIN_AGAIN = "Train the run again into another folder."
# What from_pretrained and configurations call the type of weights: 4.29 torch_dtype, 5.x dtype.
DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"
# Settings that are numbers of repeated layers. A model has more tensors than layers.
_LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
# Tables that are computed anew, and masks that GPT-2 stored among its weights.
_NEVER_READ = (
    "position_ids", "relative_position_index", "relative_coords_table", "num_batches_tracked", "token_type_ids",
    "masked_bias",
)  # fmt: skip
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "n_embd", "n_head", "n_positions", "d_model", "d_kv", "d_ff",
    "num_heads", "vocab_size", "image_size", "patch_size", "num_channels", "max_position_embeddings",
)  # fmt: skip
_LARGEST = 100_000_000
_NEW_PARAMETERS = 50_000_000  # that a new head may add


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
    auto_class: Any,
    source: str,
    next_move: str,
    new_parts: Sequence[str] = (),
    finished: bool = False,
    **options: Any,
) -> Loaded:
    """The model in float32 whatever the file holds. options: for from_pretrained.

    New are tensors of the head alone, which lies outside the base model, and of the base model's new_parts; of a finished run
    none. Raises UserError where another tensor is missing, has another shape or type, or holds NaN, and for files that cannot be
    read; next_move ends these messages.
    """
    stored = stored_tensors(source)
    if stored is None and Path(source).is_dir():
        raise UserError(f"{source} has no weights (no {' and no '.join(WEIGHTS)}). {next_move}")
    check_size(auto_class, source, options.get("config"), next_move)
    try:
        with user_input():
            model, report = auto_class.from_pretrained(
                source, **{DTYPE: torch.float32}, ignore_mismatched_sizes=True, output_loading_info=True, **options
            )
    except RuntimeError as error:
        raise UserError(f"the weights in {source} cannot be read ({first_line(error)}). {next_move}") from error
    names = {*report["missing_keys"]}
    if finished and stored is not None and set(stored) <= set(model.state_dict()):
        names |= {name for name, _ in model.named_parameters()} - set(stored)  # 4.29 does not report an untied head
    missing = _missing(model, names)
    mismatched = {str(item[0]) for item in report["mismatched_keys"]}
    is_head = _head(model, new_parts)
    lost = sorted(name for name in missing if finished or not is_head(name))
    reshaped = sorted(name for name in mismatched if finished or not is_head(name))
    unused = {str(name) for name in report.get("unexpected_keys", ())}
    if lost or reshaped:
        total = len(model.state_dict())
        found = [f"{len(lost)} of its {total} tensors are not there, such as {_some(lost)}"] if lost else []
        if reshaped:
            found.append(f"{len(reshaped)} of {total} have another shape, such as {_some(reshaped)}")
        raise UserError(
            f"{source} (model_type {model.config.model_type}) does not hold the weights of a {type(model).__name__}: "
            f"{', and '.join(found)}. They would be random. {next_move}"
        )
    _check_unused(model, unused, source, finished, next_move)
    if stored is not None:
        _check_types(model, stored, finished, next_move)
    _check_finite(model, source, next_move)
    return Loaded(model, missing, mismatched, unused)


def config_values(source: str, next_move: str) -> Optional[Dict[str, Any]]:
    """What the config.json of a model folder holds; None for a Hub id. Raises UserError for a file that is no JSON object."""
    if not Path(source).is_dir():
        return None
    file = Path(source) / "config.json"
    values: Dict[str, Any] = read_json(file, _CONFIG, next_move, not_finite=True)
    for name in _SIZES:
        numbers = values.get(name)
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if number is not None and not 1 <= number <= _LARGEST:
                raise UserError(f"{file}: {name} {number} must be from 1 to {_LARGEST:,}. {next_move}")
    if isinstance(values.get("image_size"), list) and len(values["image_size"]) != 2:
        raise UserError(
            f"{file}: image_size {values['image_size']} must be one number, or height and width. {next_move}"
        )
    return values


_CONFIG = {
    "model_type?": str,
    "architectures?": ([str], None),
    "id2label?": ({str: object}, None),
    "label2id?": ({str: object}, None),
    **{f"{name}?": (int, None) for name in _LAYER_COUNTS},
    **{f"{name}?": (int, [int], None) for name in _SIZES},
}


def make_config(read: Any, source: str, next_move: str) -> Any:
    """What read() returns, a configuration. Raises UserError, with the file, for values that its class does not take."""
    try:
        with user_input():
            return read()
    except UserError as error:
        reason: BaseException = error
    except Exception as error:  # whatever a configuration's own checks raise
        reason = error
    raise UserError(
        f"{Path(source) / 'config.json'}: no configuration can be made of it "
        f"({type(reason).__name__}: {first_line(reason)}). {next_move}"
    ) from reason


def check_size(auto_class: Any, source: str, config: Any, next_move: str) -> None:
    """Raise UserError where the config.json of a folder describes a model that is far larger than the weights, or none."""
    stored = stored_tensors(source)
    values = config_values(source, next_move) or {}
    if stored is None or ("architecture" in values and "pretrained_cfg" in values):  # timm checks its own numbers
        return
    file = Path(source) / "config.json"
    for name in _LAYER_COUNTS:
        count = values.get(name) or 0
        if count > len(stored) or count < 0:
            raise UserError(f"{file} has {name} {count}, but its weights have {len(stored)} tensors. {next_move}")
    try:
        with torch.device("meta"):
            if config is None or hasattr(auto_class, "from_config"):
                from transformers import AutoConfig

                config = config or AutoConfig.from_pretrained(source)
            made = auto_class.from_config(config) if hasattr(auto_class, "from_config") else auto_class(config)
    except (RuntimeError, NotImplementedError):  # a model that reads a tensor while it is made
        return
    except Exception as error:  # whatever a model raises for numbers that do not go together
        raise UserError(
            f"{file}: no model can be made of it ({type(error).__name__}: {first_line(error)}). {next_move}"
        ) from error
    parameters, in_files = sum(value.numel() for value in made.parameters()), stored_bytes(stored)
    if parameters > in_files + _NEW_PARAMETERS:
        raise UserError(
            f"{file} describes a model of {parameters:,} parameters, but its weights have {in_files:,} bytes. {next_move}"
        )


def _check_unused(model: Any, unused: Collection[str], source: str, finished: bool, next_move: str) -> None:
    """Raise UserError for tensors of layers that the model lacks; of a run, for all that it has no place for."""
    prefix = f"{model.base_model_prefix}."
    own = {_pattern(name, prefix) for name in model.state_dict()}
    read = [name for name in unused if name.rpartition(".")[2] not in _NEVER_READ and not name.endswith(".attn.bias")]
    lost = sorted(
        name for name in read if finished or (_pattern(name, prefix) in own and _pattern(name, prefix) != name)
    )
    if lost:
        part = "" if finished else "of the backbone "
        raise UserError(
            f"{source} holds {len(lost)} tensors {part}that a {type(model).__name__} of its config.json has no place for, such as "
            f"{_some(lost)}: config.json or the weights are of another model. {next_move}"
        )


def _pattern(name: str, prefix: str) -> str:
    """The name without the base model's prefix, with # for the numbers of layers."""
    bare = name[len(prefix) :] if name.startswith(prefix) else name
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "#", bare)


def _check_types(model: Any, stored: Mapping[str, StoredTensor], finished: bool, next_move: str) -> None:
    tables = {name.rpartition(".")[2] for name, value in model.state_dict().items() if not value.is_floating_point()}
    known = {*tables, *_NEVER_READ}
    numbers = {name: tensor for name, tensor in stored.items() if name.rpartition(".")[2] not in known}
    wrong = {
        name: tensor
        for name, tensor in numbers.items()
        if tensor.dtype not in FLOATS and not (name.endswith("attn.bias") and len(tensor.shape) == 4)
    }
    if finished and not wrong:
        most = max((FLOATS.get(tensor.dtype, 0) for tensor in numbers.values()), default=0)
        wrong = {name: tensor for name, tensor in numbers.items() if FLOATS.get(tensor.dtype, most) < most}
    if wrong:
        first = min(wrong)
        raise UserError(
            f"{wrong[first].file}: {len(wrong)} tensors have another type than the model's floating-point numbers, such as "
            f"{first} ({wrong[first].dtype}). {next_move}"
        )


def _check_finite(model: Any, source: str, next_move: str) -> None:
    broken = sorted(
        name
        for name, value in model.named_parameters()
        if value.device.type != "meta" and not bool(torch.isfinite(value).all())
    )
    if broken:
        raise UserError(f"{source}: {len(broken)} tensors hold NaN or infinity, such as {_some(broken)}. {next_move}")


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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
