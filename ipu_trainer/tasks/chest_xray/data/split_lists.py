"""Split lists: one image a line, alone as in NIH's files, or followed by labels as in other projects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Sequence, Set, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_table import IMAGE_SUFFIXES, Rejection, Row
from ipu_trainer.tasks.chest_xray.data.text_files import read_lines

_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
# A name may contain spaces: it ends with its suffix, followed by a separator or the end of the line.
_NAME = re.compile(rf'\s*"?(?P<name>[^"]*?({_SUFFIXES}))"?(?=$|[\s,;])', re.IGNORECASE)


class SplitList:
    """The images of one list, by name or path: contains a path if either is the end of the other."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self._names = {_plain(name) for name in names}
        self._ends = {end for name in self._names for end in _ends(name)}

    def __contains__(self, path: object) -> bool:
        return path in self._ends or any(end in self._names for end in _ends(str(path)))


def read_split_list(path: Path) -> SplitList:
    """Raises UserError if no line begins with an image file name."""
    lines = [line for line in read_lines(path, "a list of image files") if line.strip()]
    found = [match.group("name") for match in map(_NAME.match, lines) if match]
    if not found:
        first = f"begins with {lines[0].strip()[:60]!r}" if lines else "is empty"
        raise UserError(
            f"no line of {path} is the name of an image file; it {first}. Give a list with a name such as 00000001_000.png at "
            "the beginning of each line, as NIH's train_val_list.txt and test_list.txt."
        )
    return SplitList(path, found)


def listed_rows(rows: Sequence[Row], train_val: SplitList, test: SplitList) -> Tuple[List[Row], List[Rejection]]:
    """(rows in exactly one list, rejections of the others). Raises UserError if no row is in any list."""
    kept: List[Row] = []
    rejections: List[Rejection] = []
    for row in rows:
        in_train_val, in_test = row.path in train_val, row.path in test
        if in_train_val == in_test:
            rejections.append(
                Rejection(row.path, row.line, f"in {'both split lists' if in_test else 'neither split list'}")
            )
        else:
            kept.append(row)
    if rows and not kept and not any("both" in item.reason for item in rejections):
        raise UserError(
            f"{train_val.path} and {test.path} name none of the {len(rows):,} images of the table, such as {rows[0].path}. Give "
            "the lists that belong to it, or use --split by-patient."
        )
    return kept, rejections


def _plain(name: str) -> str:
    parts = name.strip().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _ends(path: str) -> Set[str]:
    """a/b/c.png -> a/b/c.png, b/c.png, c.png."""
    parts = path.split("/")
    return {"/".join(parts[start:]) for start in range(len(parts))}
