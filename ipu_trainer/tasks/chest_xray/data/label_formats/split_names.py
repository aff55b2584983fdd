"""The parts of a data set by the names that folders and columns give them."""

from __future__ import annotations

import re

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validate"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF = {word: part for part, words in _WORDS.items() for word in words}
# Folder names that datasets takes for a split, alone or next to - . _ space or a digit (datasets/data_files.py).
_FOLDER = re.compile(rf"(^|[-._ 0-9])({'|'.join(word for word in _PART_OF if word != 'validate')})($|[-._ 0-9])")


def part_named(name: str) -> str:
    """ "train", "validation" or "test" for a word such as "valid"; "" for any other."""
    return _PART_OF.get(name.strip().lower(), "")


def split_folder(path: str) -> str:
    """ "a/train/x/b.png" -> "a/train/"; "" where no folder is a split's."""
    *folders, _ = path.split("/")
    depth = next((depth for depth, name in enumerate(folders, start=1) if _FOLDER.search(name)), 0)
    return "".join(f"{name}/" for name in folders[:depth])


def part_of_path(path: str) -> str:
    """The part that the first such folder of a path names; "" where none does."""
    found = _FOLDER.search(split_folder(path)[:-1].rsplit("/", 1)[-1])
    return _PART_OF[found.group(2)] if found else ""
