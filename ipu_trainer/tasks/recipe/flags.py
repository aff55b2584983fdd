"""Command-line flags of a task: its own dataclass and the training arguments in one parser, with the task's defaults."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, Callable, Collection, Dict, List, Mapping, NoReturn, Sequence, Tuple, TypeVar

import torch
from transformers import HfArgumentParser

from ipu_trainer.command_line import hint, plain_value, snake_case
from ipu_trainer.compat import argument_names as renamed
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.config.profiles import load_profile
from ipu_trainer.errors import UserError, user_input
from ipu_trainer.json_files import check_shape, read_json
from ipu_trainer.tasks.folders import results
from ipu_trainer.tasks.output_guard import check_task_output
from ipu_trainer.tasks.recipe.flag_table import check_flags
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.monitor import check_reporters, default_reporters

T = TypeVar("T")
# Flags that --precision takes the place of.
_OLD_PRECISION = {"bf16": "bf16", "fp16": "fp16", "half": "fp16"}


def flag(default: T, help_text: str) -> T:
    """A field of a task's own arguments, with what --help says of it."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def recipe_defaults(**values: Any) -> Dict[str, Any]:
    """What all tasks have in place of Trainer's defaults, with these values of one, by the installed release's names.

    A micro-batch of 0 is none: training_arguments() finds one.
    """
    common = {
        "precision": "auto",
        "per_device_train_batch_size": 0,
        "lr_scheduler_type": "cosine",
        "save_total_limit": 2,
        "save_safetensors": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": default_reporters(),
        "logging_nan_inf_filter": False,  # it waits for the GPU in every step, and hides what went wrong
    }
    return compat.training_defaults(**{**common, **values})


def parse_flags(
    task: str,
    recipe_class: Any,
    argv: Sequence[str],
    defaults: Mapping[str, Any],
    arguments_class: Any = IPUTrainingArguments,
) -> Tuple[Any, Dict[str, Any]]:
    """(the recipe, values for arguments_class by field name, those that __post_init__ makes left out).

    --kebab-case and --snake_case are one flag; --output is Trainer's --output_dir. Raises UserError for unknown flags, with
    the task's name, and where --output is missing and CHECKPOINT_DIR is not set.
    """
    # Abbreviations would take a misspelt flag for another.
    parser = HfArgumentParser([recipe_class, arguments_class], prog=f"ipu-trainer train {task}", allow_abbrev=False)
    parser.add_argument(
        "--config", help="best.json of a search, or one like it; flags on the command line count instead"
    )
    parser.set_defaults(**defaults)
    taken = {item.name for item in dataclasses.fields(arguments_class) if item.init}
    words, kept = _by_installed_names(_field_flags(with_config(task, argv)), taken)
    if not any(word.split("=")[0] == "--output_dir" for word in words) and not {"-h", "--help"} & set(argv):
        words += ["--output_dir", str(results("--output", task))]
    parser.error = _refuse  # type: ignore[assignment,method-assign]  # one line, instead of all flags first
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(f"unknown flags {' '.join(unknown)}. `ipu-trainer train {task} --help` lists them.")
    values, given = {**vars(namespace), **kept}, flags_given(words)
    check_task_output(values["output_dir"], task)
    check_reporters(values["report_to"])
    check_flags(task, values, {name: parser.get_default(name) for name in values}, given)
    for name in sorted(given):
        if name in _OLD_PRECISION and values[name]:
            hint(f"--{name}", f"--precision {_OLD_PRECISION[name]}")
    names = {item.name for item in dataclasses.fields(recipe_class)}
    recipe = recipe_class(**{name: value for name, value in values.items() if name in names})
    return recipe, {name: value for name, value in values.items() if name in taken or name in kept}


def training_arguments(arguments_class: Any, values: Dict[str, Any], micro_batch: Callable[[], int]) -> Any:
    """The training arguments of parse_flags; the micro-batch, unless given, is the profile's published one or micro_batch()."""
    if not values["per_device_train_batch_size"]:
        published = load_profile(values["ipu_config"]).micro_batch if values["ipu_config"] else None
        values = {**values, "per_device_train_batch_size": published or micro_batch()}
    with user_input():
        return arguments_class(**values)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message.rstrip('.')}.")


def _by_installed_names(words: Sequence[str], fields: Collection[str]) -> Tuple[List[str], Dict[str, Any]]:
    """(flags by the installed transformers' names, values that only scripts read). Raises UserError as renamed.today."""
    given = {
        name: [plain_value(item) for item in value] if isinstance(value, list) else plain_value(str(value))
        for name, value in flags_given(words).items()
    }
    kept = {name: given.pop(name) for name in renamed.KEPT if name in given and name not in fields}
    current = renamed.today(given, fields)
    changed = {name: value for name, value in current.items() if name not in given or value is not given[name]}
    left: List[str] = []
    keep = True
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            keep = name in current and name not in changed
        left += [word] if keep else []
    for name, value in changed.items():
        text = json.dumps(value) if isinstance(value, dict) else value
        left += [f"--{name}", *(map(str, text) if isinstance(text, list) else [str(text)])]
    return left, kept


def with_config(task: str, argv: Sequence[str]) -> List[str]:
    """argv with the flags of its --config FILE in front, so that those which were typed count.

    FILE is JSON: {"about": {"task": ...}, "flags": {"learning_rate": 1e-4, ...}}, flags by their names without dashes.
    Raises UserError for a file of another form or task.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    own, rest = parser.parse_known_args(list(argv))
    if own.config is None:
        return rest
    content = read_json(own.config)
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, dict) or any(isinstance(item, dict) for value in flags.values() for item in _items(value)):
        raise UserError(
            f'--config {own.config} must hold {{"flags": {{NAME: VALUE, ...}}}}, values being texts, numbers, true, false '
            "or lists of these, as best.json of `ipu-trainer search` does."
        )
    about = content.get("about", {})
    check_shape(about, {"task?": str}, f"--config {own.config}: about")
    meant = about.get("task", task)
    if meant != task:
        raise UserError(f"--config {own.config} is for {meant}, not for {task}.")
    words: List[str] = []
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *(str(item) for item in _items(value) if value is not True)]
    return words + rest


def _items(value: Any) -> List[Any]:
    return value if isinstance(value, list) else [value]


def flags_given(argv: Sequence[str]) -> Dict[str, Any]:
    """Flags by field name as they were typed: a text, a list of texts, or True for a flag without a value."""
    given: Dict[str, Any] = {}
    values: List[str] = []
    name = ""
    for word in [*_field_flags(argv), "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if name:
            given[name] = values if len(values) > 1 else values[0] if values else True
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
    return given


def check_fraction(validation_fraction: float) -> None:
    if not 0.0 < validation_fraction < 1.0:
        raise UserError(f"validation_fraction {validation_fraction} must be above 0 and below 1 (0.1 is usual).")


def check_read(recipe: Any, name: str, is_read: bool, why: str) -> None:
    """Raise UserError for a flag of the task that is unused and has not its default."""
    value, default = getattr(recipe, name), type(recipe).__dataclass_fields__[name].default
    if value != default and not is_read:
        raise UserError(f"--{name} {value} would have no effect: {why}. Leave it out.")


def _field_flags(argv: Sequence[str]) -> List[str]:
    """Flags by the names of fields."""
    return ["--output_dir" + word[8:] if word.split("=")[0] == "--output" else word for word in snake_case(argv)]
