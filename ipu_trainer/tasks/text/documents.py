"""Texts to learn from: documents in groups, each text once; of a folder, or the Python code that is installed."""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple, TypeVar

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.folders import is_hidden

_SUFFIXES = (".txt", ".md", ".py", ".jsonl")
# A file larger than this is data rather than text.
_LARGEST_FILE_BYTES = 64 * 1024 * 1024


class Grouped:
    """What unique, limited and split_by_group handle: a text, its name for messages, and the group (a package, a folder)
    that must not be divided between training and validation."""

    group: str
    name: str
    text: str


@dataclass(frozen=True)
class Document(Grouped):
    """A text of its own."""

    group: str
    name: str
    text: str


T = TypeVar("T", bound=Grouped)


def read_folder(path: Path) -> Iterator[Document]:
    """Documents of a file or of a folder and what is below it: .txt, .md, .py whole, .jsonl a document a line ("text").

    The group is the first folder below `path`, or the file itself; a .jsonl line may name its own in "group". Hidden files
    are left out, and links that leave the folder. Raises UserError if there is nothing to read, or a line is not such an object.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist. Give a file or a folder of {', '.join(_SUFFIXES)} files.")
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES) if path.is_dir() else [path]
    found = False
    for file in files:
        if not file.is_file() or root.resolve() not in file.resolve().parents:
            continue
        name = file.relative_to(root)
        if path.is_dir() and any(is_hidden(part) for part in name.parts):
            continue
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes, more than {_LARGEST_FILE_BYTES:,}. Split it.")
        for document in _documents_of(file, name.parts[0], str(name)):
            found = True
            yield document
    if not found:
        raise UserError(f"{path} holds no text: no {', '.join(_SUFFIXES)} file with something in it.")


def _documents_of(file: Path, group: str, name: str) -> Iterator[Document]:
    if file.suffix != ".jsonl":
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        if text.strip():
            yield Document(group, name, text)
        return
    for number, record in json_lines(file):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f'{file}, line {number} has no "text". Give an object such as {{"text": "..."}} a line.')
        if record["text"].strip():
            yield Document(str(record.get("group", f"{name}:{number}")), f"{name}:{number}", record["text"])


def json_lines(file: Path) -> Iterator[Tuple[int, Any]]:
    """(line number from 1, value) of each line that is not blank. Raises UserError with the line that is no JSON."""
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{file}, line {number} is not JSON: {error}.") from error


def unique(documents: Iterable[T]) -> Iterator[T]:
    """Each text once, the first of its kind: blank lines and spaces at line ends do not make a difference."""
    seen = set()
    for document in documents:
        lines = (line.rstrip() for line in document.text.splitlines())
        digest = hashlib.sha256("\n".join(line for line in lines if line).encode("utf-8", "replace")).digest()
        if digest not in seen:
            seen.add(digest)
            yield document


def limited(documents: Iterable[T], max_bytes: int) -> List[T]:
    """At most max_bytes of UTF-8 text, drawn over all groups alike by the hash of their names; in order of names.

    max_bytes of 0 or less is no limit.
    """
    chosen = shuffled(documents)
    if max_bytes > 0:
        kept, total = [], 0
        for document in chosen:
            size = len(document.text.encode("utf-8", "replace"))
            if total + size <= max_bytes:
                kept.append(document)
                total += size
        chosen = kept
    return sorted(chosen, key=lambda document: (document.group, document.name))


def drawn(documents: Iterable[T], number: int) -> List[T]:
    """At most `number` of them, drawn over all groups alike by the hash of their names; in order of names. 0 is all."""
    return sorted(shuffled(documents)[: number or None], key=lambda document: (document.group, document.name))


def shuffled(documents: Iterable[T]) -> List[T]:
    """In the order of a hash of their names: the same on every machine that has them."""
    return sorted(documents, key=lambda document: _hash("draw", document.name))


def split_by_group(documents: Sequence[T], validation_fraction: float, seed: int) -> Tuple[List[T], List[T]]:
    """(training, validation): whole groups go to validation until it has about that share of the characters.

    Groups come in the order of a hash of (seed, name); one that would make validation larger than twice its share is
    passed over, while others are left. Raises UserError where no group can be set aside.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise UserError(f"validation_fraction {validation_fraction} must be above 0 and below 1.")
    sizes: Dict[str, int] = {}
    for document in documents:
        sizes[document.group] = sizes.get(document.group, 0) + len(document.text)
    if len(sizes) < 2:
        raise UserError(
            f"the corpus has {len(sizes)} group{'s' if len(sizes) != 1 else ''} ({', '.join(sizes) or 'it is empty'}), and "
            "validation needs one that is not trained on. Put the texts into at least two files or sub-folders."
        )
    target = validation_fraction * sum(sizes.values())
    chosen, total = set(), 0
    for group in sorted(sizes, key=lambda name: _hash(str(seed), name)):
        if total < target and total + sizes[group] <= 2 * target:
            chosen.add(group)
            total += sizes[group]
    if not chosen:
        chosen = {min(sizes, key=lambda name: (sizes[name], name))}
    train = [document for document in documents if document.group not in chosen]
    return train, [document for document in documents if document.group in chosen]


def fingerprint(documents: Iterable[Grouped]) -> str:
    """Sixteen hex digits of the names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.group}\0{document.name}\0{document.text}\0".encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).digest()


_DATA_SCIENCE = re.compile(r"^\s*(?:import|from)\s+(?:pandas|sklearn|matplotlib|seaborn)\b", re.MULTILINE)
_LARGEST_CODE_FILE_BYTES = 256 * 1024
_PASSED_OVER = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def installed_python(data_science_only: bool = True) -> Iterator[Document]:
    """Python files of the standard library and of installed packages, read and never run; the group is the package.

    data_science_only keeps files that import pandas, scikit-learn, matplotlib or seaborn, as in chapter 7.6 of Hugging
    Face's course. Files that are no valid text in their declared encoding, and those above 256 KiB (tables, not code),
    are passed over.
    """
    for root, group, file in _files():
        if file.stat().st_size > _LARGEST_CODE_FILE_BYTES:
            continue
        try:
            with tokenize.open(str(file)) as opened:
                text = opened.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        if text.strip() and (not data_science_only or _DATA_SCIENCE.search(text)):
            yield Document(group, file.relative_to(root).as_posix(), text)


def _files() -> Iterator[Tuple[Path, str, Path]]:
    """(root, package, file), sorted by root and name; each root's packages only."""
    paths = sysconfig.get_paths()
    roots: List[Path] = []
    for key in ("stdlib", "purelib", "platlib"):
        root = Path(paths[key]).resolve()
        if root.is_dir() and root not in roots:
            roots.append(root)
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            below = file.relative_to(root).parts
            if not _PASSED_OVER & set(below) and file.is_file():
                yield root, below[0].split(".")[0], file
