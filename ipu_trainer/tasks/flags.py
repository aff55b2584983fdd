"""Command-line flags of a task: its own dataclass and IPUTrainingArguments in one parser, with the task's defaults."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping, Sequence, Tuple

from transformers import HfArgumentParser

from ipu_trainer.backends import choose_backend
from ipu_trainer.training import compat
from ipu_trainer.training.arguments import IPUTrainingArguments
from ipu_trainer.training.precision import choose_precision


def parse_flags(
    task: str,
    recipe_class: Any,
    argv: Sequence[str],
    defaults: Mapping[str, Any],
    arguments_class: Any = IPUTrainingArguments,
    command: str = "train",
) -> Tuple[Any, Dict[str, Any]]:
    """(the recipe, values for arguments_class by field name, those that __post_init__ makes left out).

    --ipu-config and --ipu_config are one flag; --output is Trainer's --output_dir. Raises ValueError for unknown flags,
    with the task's name, and where --output is missing.
    """
    parser = HfArgumentParser([recipe_class, arguments_class], prog=f"ipu-trainer {command} {task}")
    parser.set_defaults(**defaults)
    renamed = [_field_flag(word) for word in argv]
    if not any(word.split("=")[0] == "--output_dir" for word in renamed) and not {"-h", "--help"} & set(argv):
        raise ValueError("--output RUN is missing: the folder for checkpoints and results.")
    namespace, unknown = parser.parse_known_args(renamed)
    if unknown:
        raise ValueError(f"unknown flags {' '.join(unknown)}. `ipu-trainer {command} {task} --help` lists them.")
    values = vars(namespace)
    names = {item.name for item in dataclasses.fields(recipe_class)}
    recipe = recipe_class(**{name: value for name, value in values.items() if name in names})
    taken = {item.name for item in dataclasses.fields(arguments_class) if item.init}
    return recipe, {name: value for name, value in values.items() if name in taken}


def takes_bf16(requested: str, values: Mapping[str, Any]) -> bool:
    """Whether to set Trainer's bf16. Its own flags --bf16 and --fp16 stand in for --precision auto."""
    if choose_backend(values["backend"], "", bool(values.get("compile_only"))).has_executors:
        if requested == "bf16":
            raise ValueError(
                "--precision bf16 is for the host: IPUs have no bfloat16. Use --half, or --precision fp32."
            )
        return bool(values.get("bf16"))
    flags = [name for name in ("bf16", "fp16") if values.get(name)]
    if flags and requested not in ("auto", flags[0]):
        raise ValueError(f"--precision {requested} and --{flags[0]} contradict each other. Give one of them.")
    if flags:
        return "bf16" in flags
    return choose_precision(requested, bool(values.get(compat.field_name("use_cpu")))).name == "bf16"


def _field_flag(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = "--" + flag[2:].replace("-", "_")
    return ("--output_dir" if flag == "--output" else flag) + equals + value
