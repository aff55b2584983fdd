"""Tokenizers: trained from a corpus or loaded, and saved so that both stacks can read them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable

from transformers import AutoTokenizer

from ipu_trainer.atomic import write_json
from ipu_trainer.errors import UserError, user_input

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
    with user_input():
        return AutoTokenizer.from_pretrained(source)


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
