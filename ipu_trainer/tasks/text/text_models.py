"""Models of a task by a name for a size, folder or Hub id, from scratch or with their weights; and their tokenizers."""

from __future__ import annotations

import difflib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Tuple

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer

from ipu_trainer.atomic import write_json
from ipu_trainer.command_line import plain_value
from ipu_trainer.errors import UserError, first_line, user_input
from ipu_trainer.json_files import read_json
from ipu_trainer.stored_weights import WEIGHTS
from ipu_trainer.tasks.pretrained import DTYPE, config_values, make_config
from ipu_trainer.tasks.recipe.flags import check_read

# Special tokens by the class that reads a byte-level BPE (vocab.json and merges.txt) with them.
SPECIAL_TOKENS: Dict[str, Dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "RobertaTokenizer": {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
}
_SMALLEST_VOCABULARY = 300
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


_TOKENIZER_FILES: Dict[str, Any] = {
    "tokenizer_config.json": {"tokenizer_class?": (str, None), "model_max_length?": (float, None)},
    "tokenizer.json": {"model": {str: object}},
    "vocab.json": {str: int},
    "special_tokens_map.json": {},
    "added_tokens.json": {str: int},
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, tokenizer_class: str) -> Any:
    """A byte-level BPE of at most vocab_size tokens, with the special tokens of tokenizer_class.

    Any text can be written in it. Raises UserError for a vocabulary that does not hold the 256 bytes.
    """
    from tokenizers import ByteLevelBPETokenizer

    special = list(dict.fromkeys(SPECIAL_TOKENS[tokenizer_class].values()))
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} special tokens come first. Use "
            f"{_SMALLEST_VOCABULARY} or more (8192 works well for code)."
        )
    if tokenizer_class == "RobertaTokenizer":  # the ids that its models expect
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=special, show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        trained.save_model(folder)
        _write_config(Path(folder), tokenizer_class)
        return AutoTokenizer.from_pretrained(folder)


def load_tokenizer(source: str) -> Any:
    """AutoTokenizer of a folder or Hub id. Raises UserError for a folder without a tokenizer."""
    if not has_tokenizer(source):
        raise UserError(f"{source} holds no tokenizer (looked for {', '.join(_FILES)}). Give another --tokenizer.")
    if not Path(source).is_dir():
        with user_input():
            return AutoTokenizer.from_pretrained(source)
    for name, shape in _TOKENIZER_FILES.items():
        if (Path(source) / name).is_file():
            read_json(Path(source) / name, shape, "Give another --tokenizer.")
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises a bare Exception for a file of another form
        raise UserError(
            f"{source}: its tokenizer cannot be read ({first_line(error)}). Give another --tokenizer."
        ) from error


def has_tokenizer(source: str) -> bool:
    """Whether a local model folder brings its own tokenizer; a Hub id is taken to."""
    path = Path(source)
    return not path.is_dir() or any((path / name).is_file() for name in _FILES)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save it beside a model. A byte-level BPE is written as vocab.json and merges.txt, without the tokenizer.json of the
    newest `tokenizers`, which the Pod stack's cannot read.
    """
    tokenizer.save_pretrained(str(folder))
    name = type(tokenizer).__name__.replace("Fast", "")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if name in SPECIAL_TOKENS and backend is not None and len(tokenizer) == backend.get_vocab_size(False):
        backend.model.save(str(folder))
        _write_config(folder, name, json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")))
        for left in ("tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
            if (folder / left).is_file():
                (folder / left).unlink()


def _write_config(folder: Path, tokenizer_class: str, before: Any = None) -> None:
    """tokenizer_config.json with names that both stacks know."""
    config: Dict[str, Any] = {"tokenizer_class": tokenizer_class, **SPECIAL_TOKENS[tokenizer_class]}
    for name in config:
        saved = (before or {}).get(name)
        if name != "tokenizer_class" and saved:
            config[name] = saved["content"] if isinstance(saved, dict) else saved
    for name in ("add_prefix_space", "model_max_length"):
        if before and name in before:
            config[name] = before[name]
    write_json(folder / "tokenizer_config.json", config)


# name -> (model_type, what differs from that type's default configuration).
Sizes = Mapping[str, Tuple[str, Mapping[str, Any]]]


class ModelChoice(NamedTuple):
    """What --model, --from_scratch, --model_overrides and --tokenizer say. tokenizer: a folder or Hub id, "" to train one."""

    config: Any
    from_scratch: bool
    overrides: Dict[str, Any]
    tokenizer: str


def choose_model(recipe: Any, sizes: Sizes, no_dropout: Mapping[str, Mapping[str, Any]]) -> ModelChoice:
    """The model that a task's flags name. Raises UserError for one that there is not, and for flags that it does not read.

    From scratch are names of sizes and folders without weights, or where asked for.
    """
    name, path = recipe.model, Path(recipe.model)
    config = find_config(name, sizes, no_dropout)
    without_weights = path.is_dir() and not any((path / file).is_file() for file in WEIGHTS)
    scratch = recipe.from_scratch or name in sizes or without_weights
    tokenizer = recipe.tokenizer or (name if name not in sizes and has_tokenizer(name) else "")
    check_read(recipe, "vocab_size", not tokenizer, f"the tokenizer of {tokenizer} is there")
    overrides = parse_overrides(recipe.model_overrides)
    if overrides and not scratch:
        raise UserError(
            "model_overrides change a configuration, and this model has weights. Add --from_scratch true, or leave them out."
        )
    for item, value in overrides.items():
        if not hasattr(config, item):
            raise UserError(f"model_overrides: {type(config).__name__} has no {item!r}.")
        setattr(config, item, value)
    return ModelChoice(config, scratch, overrides, tokenizer)


def find_config(model: str, sizes: Sizes, no_dropout: Mapping[str, Mapping[str, Any]]) -> Any:
    """The configuration of a name of sizes, a folder with a config.json, or a Hub id.

    no_dropout: model_type -> settings of the sizes nano and mini, which see little text, once.
    """
    if model in sizes:
        model_type, values = sizes[model]
        dropout = no_dropout[model_type] if is_small(model) else {}
        return AutoConfig.for_model(model_type, **{**dropout, **values})
    if "/" not in model and not Path(model).exists():
        near = difflib.get_close_matches(model, sizes, n=3)
        raise UserError(
            f"model {model!r} is neither a folder nor one of {', '.join(sizes)}."
            + (f" Nearest: {', '.join(near)}." if near else "")
        )
    found = config_values(model, "Give another --model.")
    kind = (found or {}).get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        raise UserError(
            f"{model} has model_type {kind!r}, which transformers {transformers.__version__} does not know. Give another model."
        )
    if found is None:
        with user_input():
            return AutoConfig.from_pretrained(model)
    return make_config(lambda: AutoConfig.from_pretrained(model), model, "Give another --model.")


def check_task(model: str, config: Any, mapping: Any, task: str) -> None:
    """Raises UserError for an architecture without a model for the task; mapping: configuration classes to models."""
    if type(config) not in mapping:
        raise UserError(
            f"{model} holds a model of model_type {config.model_type}, which has no head for {task}. Give a model that has."
        )


def check_vocabulary(config: Any, num_tokens: int) -> None:
    if num_tokens > config.vocab_size:
        raise UserError(
            f"the tokenizer has {num_tokens:,} tokens, but the model's vocabulary holds {config.vocab_size:,}. Use the "
            "model's own tokenizer, or train from scratch without setting vocab_size."
        )


def random_model(auto: Any, config: Any, overrides: Mapping[str, Any]) -> Any:
    """A model with random weights: float32, whatever type the configuration was saved with, unless overrides name one.

    Raises UserError for a dtype (torch_dtype) of overrides that is no type of floating-point numbers.
    """
    asked = str(overrides.get("dtype", overrides.get("torch_dtype", "float32")))
    dtype = getattr(torch, asked, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"model_overrides: {DTYPE} {asked} is not one of float32, float16, bfloat16.")
    setattr(config, DTYPE, dtype)
    return auto.from_config(config, **{DTYPE: dtype})


def is_small(model: str) -> bool:
    return model.endswith(("-nano", "-mini"))


def set_vocabulary(config: Any, tokenizer: Any, overrides: Mapping[str, Any]) -> None:
    """vocab_size and special ids of a model from scratch, but for those that were set with model_overrides."""
    values = {"vocab_size": len(tokenizer)}
    values.update({name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")})
    for name, value in values.items():
        if name not in overrides:
            setattr(config, name, value)


def parse_overrides(text: str) -> Dict[str, Any]:
    """ "n_layer=6 n_embd=384" (or with commas) as values: whole numbers, numbers, true, false or words."""
    values: Dict[str, Any] = {}
    for item in text.replace(",", " ").split():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"model_overrides: {item!r} is not NAME=VALUE. Example: n_layer=6 n_embd=384.")
        values[name] = plain_value(value)
    return values


def model_card(record: Mapping[str, Any], pipeline_tag: str, data: str, table: str) -> str:
    """README.md of a run of a task on text. record: run.json."""
    task = record["task"]
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline_tag}\ntags: [{task}, ipu_trainer]\n---\n"
        f"# {record['model']}, {record['num_parameters']:,} parameters\n\n"
        f"Trained by `ipu-trainer train {task}` on {data}.\n\n```\n{table}\n```\n"
    )
