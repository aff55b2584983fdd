"""The corpus that every machine has: the Python code that is installed on it, read and never run."""

from __future__ import annotations

import re
import sysconfig
import tokenize
from pathlib import Path
from typing import Iterator, List, Tuple

from ipu_trainer.tasks.text.documents import Document

_DATA_SCIENCE = re.compile(r"^\s*(?:import|from)\s+(?:pandas|sklearn|matplotlib|seaborn)\b", re.MULTILINE)
_LARGEST_FILE_BYTES = 256 * 1024
_PASSED_OVER = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def installed_python(data_science_only: bool = True) -> Iterator[Document]:
    """Python files of the standard library and of installed packages; the group is the package.

    data_science_only keeps files that import pandas, scikit-learn, matplotlib or seaborn, as in chapter 7.6 of Hugging
    Face's course. Files that are no valid text in their declared encoding, and those above 256 KiB (tables, not code),
    are passed over.
    """
    for root, group, file in _files():
        if file.stat().st_size > _LARGEST_FILE_BYTES:
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
