"""What a model folder's weights hold, before a model is made of them: names, types and shapes of the tensors in its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from safetensors import SafetensorError, safe_open

from ipu_trainer.errors import UserError, first_line
from ipu_trainer.json_files import read_json

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes of each
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_WHOLE = "Copy the files again: they are cut, damaged or pointers of git lfs."


class StoredTensor(NamedTuple):
    """One tensor of a file. dtype: as safetensors calls it, such as F32."""

    file: Path
    dtype: str
    shape: Tuple[int, ...]


def stored_tensors(folder: Union[str, os.PathLike[str]]) -> Optional[Dict[str, StoredTensor]]:
    """The tensors of a folder's weights by name; None where it has none, or is no folder.

    Raises UserError, with the file, for one that is cut short or damaged.
    """
    index = next((Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()), None)
    if index is None:
        return None
    if index.suffix != ".json":
        return tensors_of(index)
    content = read_json(index, {"weight_map": {str: str}}, _WHOLE)
    files: List[str] = sorted(set(content["weight_map"].values()))
    found: Dict[str, StoredTensor] = {}
    for name in files:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {name!r}, which is no file beside it. {_WHOLE}")
        found.update(tensors_of(index.parent / name))
    lost = sorted(set(content["weight_map"]) - set(found))
    if lost:
        raise UserError(f"{index} names {lost[0]}, which is not in its files. {_WHOLE}")
    return found


def stored_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Bytes of the files."""
    return sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()})


def tensors_of(file: Path) -> Dict[str, StoredTensor]:
    """The tensors of one file by name. Raises UserError for a file that is cut short or damaged."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(str(file), framework="pt") as opened:
                slices = ((name, opened.get_slice(name)) for name in opened.keys())  # noqa: SIM118  # it is no mapping
                return {
                    name: StoredTensor(file, str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices
                }
        except (SafetensorError, ValueError) as error:
            raise _unreadable(file, error) from None
    return {
        name: StoredTensor(file, _NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for name, value in _pickled(file).items()
    }


def _pickled(file: Path) -> Dict[str, torch.Tensor]:
    try:
        content: Any = torch.load(str(file), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle raises anything
        raise _unreadable(file, error) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise UserError(f"the weights in {file} cannot be read (it holds no tensors by name). {_WHOLE}")
    return content


def _unreadable(file: Path, error: BaseException) -> UserError:
    return UserError(f"the weights in {file} cannot be read ({first_line(error)}). {_WHOLE}")
