"""Weights of a model folder or checkpoint: files and headers, finite values, and the tensors that the model of config.json has.

Files are read a few megabytes at a time. Where names disagree with the model's, as with files of other releases, from_pretrained
decides, which knows these names.
"""

from __future__ import annotations

import contextlib
import inspect
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import accelerate
import safetensors
import torch
import transformers
from safetensors import SafetensorError

from ipu_trainer.errors import UserError, first_line
from ipu_trainer.tasks.checking.file_checks import MISSING, FileGroup, json_problem
from ipu_trainer.training.state.checkpoints import archive_problem

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ELEMENTS_AT_ONCE = 1 << 22
Shapes = Dict[str, Tuple[int, ...]]


def check_weights(folder: Path) -> List[FileGroup]:
    """One group a file of weights, then config.json with what its model needs. Never raises for what the files hold."""
    names, problem = _weight_files(folder)
    if problem:
        return [FileGroup(names[0], problem=problem), *_config_group(folder, None)]
    groups, shapes = [], {}
    for name in names:
        found, problem = _tensors(folder / name)
        shapes.update(found)
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        groups.append(FileGroup(name, f"{len(found)} tensors, all finite, {size:,} bytes", problem))
    whole = not any(group.problem for group in groups)
    return [*groups, *_config_group(folder, shapes if whole else None)]


def _weight_files(folder: Path) -> Tuple[List[str], str]:
    for name in _SINGLE:
        if (folder / name).is_file():
            return [name], ""
        index = f"{name}.index.json"
        if (folder / index).is_file():
            values, problem = json_problem(folder / index, {"weight_map": {str: str}})
            parts = sorted({str(part) for part in values.get("weight_map", {}).values()})
            outside = [part for part in parts if Path(part).name != part]
            problem = problem or (f"it names {outside[0]!r}, which is no file of this folder" if outside else "")
            return ([index], problem) if problem else (parts, "")
    return [_SINGLE[0]], MISSING


def _tensors(path: Path) -> Tuple[Shapes, str]:
    """(shapes by name, what is wrong)"""
    if not path.is_file():
        return {}, MISSING
    read = _of_safetensors if path.suffix == ".safetensors" else _of_torch
    shapes: Shapes = {}
    try:
        for name, shape, parts in read(path):
            shapes[name] = shape
            for part in parts:
                if part.is_floating_point() and not bool(torch.isfinite(part.float()).all()):
                    return shapes, f"{name} holds values that are not finite"
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, struct.error) as error:
        return shapes, first_line(error)
    return shapes, "" if shapes else "it holds no tensor"


_Tensor = Tuple[str, Tuple[int, ...], Iterator[torch.Tensor]]


def _of_safetensors(path: Path) -> Iterator[_Tensor]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            values = file.get_slice(name)
            shape = tuple(values.get_shape())
            rows = max(1, _ELEMENTS_AT_ONCE * shape[0] // max(1, _count(shape))) if shape else 0
            begins = range(0, shape[0], rows) if shape else ()
            parts = (values[begin : begin + rows] for begin in begins)
            yield name, shape, parts if shape else iter([file.get_tensor(name)])


def _of_torch(path: Path) -> Iterator[_Tensor]:
    problem = archive_problem(path)
    if problem:
        raise ValueError(problem)
    loaded = load_state(path)
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError("it holds no dictionary of tensors")
    for name, tensor in loaded.items():
        yield str(name), tuple(tensor.shape), iter(torch.split(tensor.reshape(-1), _ELEMENTS_AT_ONCE))


def load_state(path: Path) -> Any:
    """What torch.save wrote, without running code of the file; from torch 2.1 on mapped, not read. Raises RuntimeError."""
    mapped: Dict[str, Any] = {"mmap": True} if "mmap" in inspect.signature(torch.load).parameters else {}
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, **mapped)
    except Exception as error:  # whatever the bytes of a damaged pickle make of its reader
        raise RuntimeError(first_line(error)) from error


def _config_group(folder: Path, shapes: Optional[Shapes]) -> List[FileGroup]:
    values, problem = json_problem(folder / "config.json", {})
    kind = ", ".join(map(str, values.get("architectures") or [])) or str(values.get("model_type", "no model_type"))
    if problem or shapes is None:
        return [FileGroup("config.json", kind, problem)]
    try:
        model_class, model = _empty_model(folder)
        problem = _difference(model, shapes)
        if problem:
            problem = _as_loaded(model_class, folder)
    except UserError as error:
        problem = str(error)
    return [FileGroup("config.json", f"{kind}, {len(shapes)} tensors of its shapes", problem)]


def _empty_model(folder: Path) -> Tuple[Any, Any]:
    """(class, model without memory for its weights). Raises UserError where config.json describes none."""
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        name = (getattr(config, "architectures", None) or [""])[0]
        model_class = getattr(transformers, str(name), None)
        with accelerate.init_empty_weights():
            model = transformers.AutoModel.from_config(config) if model_class is None else model_class(config)
        model.tie_weights()
    except Exception as error:  # whatever a class makes of wrong values
        raise UserError(f"it describes no model that can be made: {first_line(error)}") from error
    return type(model) if model_class is None else model_class, model


def _difference(model: Any, shapes: Shapes) -> str:
    """What the file lacks of the model's tensors; tied ones are there once."""
    state = model.state_dict(keep_vars=True)
    there = {id(tensor) for name, tensor in state.items() if name in shapes}
    wanted = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    lost = [name for name, tensor in wanted.items() if id(tensor) not in there]
    reshaped = [name for name in wanted if name in shapes and shapes[name] != tuple(wanted[name].shape)]
    if lost:
        return f"{len(lost)} of the {len(state)} tensors of its {type(model).__name__} are not in the weights, such as {lost[0]}"
    if reshaped:
        name = reshaped[0]
        return f"{name} is {list(shapes[name])} in the weights and {list(wanted[name].shape)} in its {type(model).__name__}"
    return ""


def _as_loaded(model_class: Any, folder: Path) -> str:
    """The same, as from_pretrained says it, which knows names of other releases; from transformers 5 on without memory for it."""
    place: Dict[str, Any] = {"device_map": "meta"} if int(transformers.__version__.partition(".")[0]) >= 5 else {}
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "local_files_only": True, **place}
    try:
        with _quiet():
            report = model_class.from_pretrained(str(folder), **options)[1]
    except Exception as error:  # as of _empty_model
        return f"its {model_class.__name__} cannot be loaded: {first_line(error)}"
    lost = sorted(map(str, report["missing_keys"]))
    reshaped = sorted(str(item[0]) for item in report["mismatched_keys"])
    if lost:
        return f"{len(lost)} tensors of its {model_class.__name__} are not in the weights, such as {lost[0]}"
    if reshaped:
        return f"{len(reshaped)} tensors of its {model_class.__name__} have another shape in the weights, such as {reshaped[0]}"
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports: the table says what they would."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _count(shape: Tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
