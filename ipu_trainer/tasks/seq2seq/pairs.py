"""Pairs of texts: from a file, or functions and what their docstrings say first, from the Python code installed here."""

from __future__ import annotations

import ast
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Union

import numpy as np
import torch
from torch.utils.data import Dataset

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.text.documents import Document, Grouped, json_lines

IGNORED = -100  # the label that no loss counts
_TARGET_WORDS = (3, 40)
_SOURCE_LINES = (2, 60)


@dataclass(frozen=True)
class Pair(Grouped):
    """A source and what is to be written of it; the group (a package) must not be divided by a split."""

    group: str
    name: str
    source: str
    target: str

    @property
    def text(self) -> str:  # type: ignore[override]  # read-only here
        return f"{self.source}\n\n{self.target}"


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of a .jsonl file: {"source": ..., "target": ...} a line, with "group" where lines belong together.

    Raises UserError with the line that is not such an object, and for a file without any.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path} is not a file. Give a .jsonl file with {{"source": "...", "target": "..."}} a line.')
    found = False
    for number, record in json_lines(path):
        texts = [record.get(name) if isinstance(record, dict) else None for name in ("source", "target")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f'{path}, line {number} has no "source" or no "target" with text in it.')
        found = True
        yield Pair(str(record.get("group", number)), f"{path.name}:{number}", str(texts[0]), str(texts[1]))
    if not found:
        raise UserError(f"{path} is empty.")


def docstring_pairs(documents: Iterable[Document]) -> Iterator[Pair]:
    """(function without its docstring, the docstring's first paragraph on one line), of code that is parsed, never run.

    Functions of 2 to 60 lines, paragraphs of 3 to 40 words in ASCII. Files that do not parse are passed over.
    """
    for document in documents:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other people's code
                tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        lines = document.text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _pair_of(node, lines, document)


def _pair_of(
    node: Union[ast.FunctionDef, ast.AsyncFunctionDef], lines: List[str], document: Document
) -> Iterator[Pair]:
    docstring = ast.get_docstring(node)
    first = node.body[0]
    if not docstring or len(node.body) < 2 or first.end_lineno is None or node.end_lineno is None:
        return
    target = " ".join(docstring.strip().split("\n\n")[0].split())
    body = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
    words = len(target.split())
    if _TARGET_WORDS[0] <= words <= _TARGET_WORDS[1] and _SOURCE_LINES[0] <= len(body) <= _SOURCE_LINES[1]:
        source = textwrap.dedent("\n".join(body)).strip()
        if target.isascii() and source:
            yield Pair(document.group, f"{document.name}:{node.lineno}", source, target)


class FixedShapePairs(Dataset):  # type: ignore[type-arg]
    """Pairs as arrays of one shape: input_ids and attention_mask (source_length,), labels (target_length,).

    Longer texts are cut, and `describe` says how many; padding of labels counts in no loss.
    """

    def __init__(self, pairs: List[Pair], tokenizer: Any, source_length: int, target_length: int, prefix: str) -> None:
        self.pairs = pairs
        if tokenizer.pad_token_id is None:
            raise UserError("the tokenizer has no pad token, which pairs of one shape need. Use another --tokenizer.")
        sources = tokenizer([prefix + pair.source for pair in pairs], verbose=False)["input_ids"]
        targets = tokenizer(text_target=[pair.target for pair in pairs], verbose=False)["input_ids"]
        self.num_cut = (
            sum(len(ids) > source_length for ids in sources),
            sum(len(ids) > target_length for ids in targets),
        )
        self.source_length, self.target_length = source_length, target_length
        self.input_ids = _padded(sources, source_length, tokenizer.pad_token_id)
        self.attention_mask = _padded([[1] * len(ids) for ids in sources], source_length, 0)
        self.labels = _padded(targets, target_length, IGNORED)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Dict[str, torch.Tensor]:
        return {
            "input_ids": torch.from_numpy(self.input_ids[index]),
            "attention_mask": torch.from_numpy(self.attention_mask[index]),
            "labels": torch.from_numpy(self.labels[index]),
        }

    def describe(self) -> str:
        cut = f"{self.num_cut[0]:,} sources cut to {self.source_length}, {self.num_cut[1]:,} targets to {self.target_length}"
        return f"{len(self):,} pairs ({cut} tokens)"


class WithDecoderInputs:
    """A trainer's collator that gives the decoder's inputs too, for losses that are made of logits and labels."""

    def __init__(self, trainer: Any) -> None:
        self.collator = trainer.data_collator
        self.shifted: Any = getattr(trainer.model, "prepare_decoder_input_ids_from_labels", None)
        if self.shifted is None:
            raise UserError(
                f"--label_smoothing_factor needs decoder inputs made of labels, which {type(trainer.model).__name__} does not "
                "make. Leave it out."
            )

    def __call__(self, samples: Any) -> Dict[str, Any]:
        batch: Dict[str, Any] = dict(self.collator(samples))
        return {**batch, "decoder_input_ids": self.shifted(labels=batch["labels"])}


def _padded(rows: List[List[int]], length: int, filler: int) -> np.ndarray:
    """Rows cut or filled up to one length, int64; a row that is cut keeps its last token, which ends the text."""
    table = np.full((len(rows), length), filler, dtype=np.int64)
    for number, ids in enumerate(rows):
        kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        table[number, : len(kept)] = kept
    return table
