"""From texts to token streams in a run's folder: read once, then the run and its resumption read the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ipu_trainer.atomic import read_json, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.language_modeling.packing import read_stream, token_stream, write_stream
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments
from ipu_trainer.tasks.text.documents import Document, fingerprint, limited, read_folder, split_by_group, unique
from ipu_trainer.tasks.text.python_code import installed_python
from ipu_trainer.tasks.text.tokenizers import load_tokenizer, save_tokenizer, train_tokenizer

_ABOUT = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Token streams of training and validation, their tokenizer, and `about`: what corpus.json says."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Any
    about: Dict[str, Any]

    def describe(self) -> List[Tuple[str, str]]:
        """(label, text) of each split."""
        rows = []
        for label, split in (("training", "train"), ("validation", "validation")):
            about = self.about[split]
            more = f" and {len(about['groups']) - 4} more" if len(about["groups"]) > 4 else ""
            size = f"{about['documents']:,} documents, {about['characters']:,} characters, {about['tokens']:,} tokens"
            rows.append((label, f"{size} of {', '.join(about['groups'][:4])}{more}"))
        return rows


def read_documents(recipe: LanguageModelingArguments, seed: int) -> Tuple[List[Document], List[Document]]:
    """(training, validation) documents: each text once, split by package or folder."""
    if recipe.corpus:
        source = read_folder(Path(recipe.corpus))
    else:
        source = installed_python(recipe.files == "data-science")
    documents = limited(unique(source), int(recipe.max_megabytes * 1e6))
    if not documents:
        raise UserError(
            f"the corpus is empty: no text in {recipe.corpus or 'the installed Python code'} of at most "
            f"{recipe.max_megabytes} megabytes. Give --corpus FOLDER, or a larger --max_megabytes."
        )
    return split_by_group(documents, recipe.validation_fraction, seed)


def prepare_corpus(
    recipe: LanguageModelingArguments, tokenizer_source: str, masked: bool, folder: Path, seed: int
) -> Corpus:
    """The corpus in `folder`, made if it is not there or was made with other settings.

    tokenizer_source: a folder or Hub id; empty trains one.
    """
    settings = {
        "corpus": recipe.corpus,
        "files": recipe.files,
        "max_megabytes": recipe.max_megabytes,
        "validation_fraction": recipe.validation_fraction,
        "tokenizer": tokenizer_source,
        "vocab_size": None if tokenizer_source else recipe.vocab_size,
        "masked": masked,
        "seed": seed,
    }
    about_file = folder / _ABOUT
    if about_file.is_file():
        about = read_json(about_file)
        if about["settings"] == settings:
            return _read(folder, about)
    train, validation = read_documents(recipe, seed)
    if tokenizer_source:
        tokenizer = load_tokenizer(tokenizer_source)
    else:
        kind = "RobertaTokenizer" if masked else "GPT2Tokenizer"
        tokenizer = train_tokenizer((document.text for document in train), recipe.vocab_size, kind)
    if masked and tokenizer.mask_token_id is None:
        raise UserError(f"the tokenizer {tokenizer_source} has no mask token, and the model learns masked tokens.")
    about = {"settings": settings, "fingerprint": fingerprint([*train, *validation])}
    for split, documents in (("train", train), ("validation", validation)):
        stream = token_stream(documents, tokenizer)
        write_stream(folder / f"{split}.npy", stream)
        about[split] = _counts(documents, stream)
    save_tokenizer(tokenizer, folder / "tokenizer")
    write_json(about_file, about)  # last: what it describes is whole
    return _read(folder, about)


def _counts(documents: Sequence[Document], stream: np.ndarray) -> Dict[str, Any]:
    return {
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "bytes": sum(len(document.text.encode("utf-8", "replace")) for document in documents),
        "tokens": len(stream),
        "groups": sorted({document.group for document in documents}),
    }


def _read(folder: Path, about: Dict[str, Any]) -> Corpus:
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    return Corpus(read_stream(folder / "train.npy"), read_stream(folder / "validation.npy"), tokenizer, about)
