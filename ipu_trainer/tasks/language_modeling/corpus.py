"""From texts to token streams in a run's folder, which the run and its resumption read, and rows of one length of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling

from ipu_trainer.atomic import atomic_path, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.json_files import read_json
from ipu_trainer.tasks.language_modeling.recipe_arguments import LanguageModelingArguments
from ipu_trainer.tasks.output_guard import CORPUS, claim, kind_of
from ipu_trainer.tasks.text.documents import (
    Document,
    fingerprint,
    installed_python,
    limited,
    read_folder,
    split_by_group,
    unique,
)
from ipu_trainer.tasks.text.text_models import load_tokenizer, save_tokenizer, train_tokenizer

IGNORED = -100  # the label that no loss counts
_TEXTS_A_CALL = 256


def token_stream(documents: Iterable[Document], tokenizer: Any) -> np.ndarray:
    """The documents' tokens, each document followed by the end-of-text token; uint16 or uint32, shape (tokens,)."""
    end = tokenizer.eos_token_id
    if end is None:
        end = tokenizer.sep_token_id
    if end is None:
        raise UserError("the tokenizer has neither an eos nor a sep token to end documents with. Set one of them.")
    kind = np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max else np.uint32
    texts = [document.text for document in documents]
    pieces = [
        np.asarray([*ids, end], dtype=kind)
        for start in range(0, len(texts), _TEXTS_A_CALL)
        for ids in tokenizer(texts[start : start + _TEXTS_A_CALL], add_special_tokens=False, verbose=False)["input_ids"]
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=kind)


def row_starts(num_tokens: int, row: int, overlap: int) -> np.ndarray:
    """Where rows of `row` tokens begin so that they cover all tokens: steps of row - overlap, the last row moved back to
    end with the stream instead of being padded. Raises UserError for a stream shorter than one row.
    """
    if num_tokens < row:
        raise UserError(
            f"the text has {num_tokens:,} tokens, fewer than one row of sequence_length {row}. Give more text, or a "
            "smaller --sequence_length."
        )
    starts = np.arange(0, num_tokens - row + 1, row - overlap, dtype=np.int64)
    if starts[-1] != num_tokens - row:
        starts = np.append(starts, num_tokens - row)
    return starts


class PackedRows(Dataset):  # type: ignore[type-arg]
    """Rows of sequence_length tokens. Item: {"input_ids": (sequence_length,), "num_seen": tokens not to be predicted}.

    Training rows lie side by side. With once=True (validation) every token of the stream is predicted once and no more:
    rows of a causal model overlap by one token, which gives the first new token its context, and what a last row
    repeats is in num_seen.
    """

    def __init__(self, stream: np.ndarray, sequence_length: int, causal: bool, once: bool = False) -> None:
        if sequence_length < 2:
            raise UserError(f"sequence_length {sequence_length} leaves nothing to predict. Use 2 or more.")
        self.stream, self.sequence_length, self.once = stream, sequence_length, once
        self.starts = row_starts(len(stream), sequence_length, overlap=1 if once and causal else 0)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        start = int(self.starts[index])
        row = torch.from_numpy(self.stream[start : start + self.sequence_length].astype(np.int64))
        covered = int(self.starts[index - 1]) + self.sequence_length if index and self.once else start
        return {
            "input_ids": row,
            "num_seen": torch.tensor(max(0, covered - start)),
            "row": torch.tensor(index if self.once else -1),
        }


class RowCollator:
    """Rows to a batch through DataCollatorForLanguageModeling; labels of num_seen tokens are ignored.

    With masked models validation rows are masked by (seed, row): the same in every evaluation. Training rows are masked
    by torch's generator, whose state is in checkpoints.
    """

    def __init__(self, tokenizer: Any, masked: bool, mlm_probability: float, seed: int) -> None:
        self.stock = DataCollatorForLanguageModeling(
            tokenizer, mlm=masked, mlm_probability=mlm_probability if masked else 0.15
        )
        self.masked, self.seed = masked, seed

    def __call__(self, rows: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
        numbers = [int(row["row"]) for row in rows]
        if self.masked and numbers[0] >= 0:
            parts = [self._masked_by_number(row, number) for row, number in zip(rows, numbers)]
            batch = {name: torch.cat([part[name] for part in parts]) for name in ("input_ids", "labels")}
        else:
            stacked = self.stock([row["input_ids"] for row in rows])
            batch = {name: stacked[name] for name in ("input_ids", "labels")}
        if not self.masked:  # rows hold no padding; where the pad token is the end of text, that is to be learnt too
            batch["labels"] = batch["input_ids"].clone()
        positions = torch.arange(batch["labels"].shape[1])
        seen = torch.stack([row["num_seen"] for row in rows])
        batch["labels"][positions[None, :] < seen[:, None]] = IGNORED
        return batch

    def _masked_by_number(self, row: Dict[str, torch.Tensor], number: int) -> Dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + number) % (1 << 63))
            batch: Dict[str, torch.Tensor] = self.stock([row["input_ids"]])
        return batch


def unigram_perplexity(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> Tuple[float, float]:
    """(perplexity, nats a token) of validation by the training text's token frequencies, each counted once more.

    The baseline that knows which tokens are common and nothing about their order.
    """
    counts = np.bincount(np.asarray(train, dtype=np.int64), minlength=vocab_size).astype(np.float64) + 1.0
    surprise = -np.log(counts / counts.sum())
    nats = float(surprise[np.asarray(validation, dtype=np.int64)].mean())
    return float(np.exp(nats)), nats


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
    about_file = folder / "corpus.json"
    if about_file.is_file():
        about = read_json(about_file, {"settings": {}}, "Remove it: the corpus is read again.")
        if about["settings"] == settings:
            return _read(folder, about)
        if kind_of(folder.parent) is not None:  # a run or a search that learned from it
            changed = ", ".join(name for name in settings if about["settings"].get(name) != settings[name])
            raise UserError(f"{folder} holds the corpus of other settings ({changed}). Give another --output.")
    claim(folder, CORPUS)
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
        with atomic_path(folder / f"{split}.npy") as temporary, temporary.open("wb") as opened:
            np.save(opened, stream, allow_pickle=False)
        about[split] = {
            "documents": len(documents),
            "characters": sum(len(document.text) for document in documents),
            "bytes": sum(len(document.text.encode("utf-8", "replace")) for document in documents),
            "tokens": len(stream),
            "groups": sorted({document.group for document in documents}),
        }
    save_tokenizer(tokenizer, folder / "tokenizer")
    write_json(about_file, about)  # last: what it describes is whole
    return _read(folder, about)


def _read(folder: Path, about: Dict[str, Any]) -> Corpus:
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    train, validation = (np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in ("train", "validation"))
    return Corpus(train, validation, tokenizer, about)
