"""Images that a user names: files, folders, patterns such as "films/*.png", and CSV files with a column of file names."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Iterator, List, Sequence

from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.tasks.chest_xray.data.image_folder import IMAGE_SUFFIXES, is_image
from ipu_trainer.tasks.chest_xray.data.label_formats.nih import file_name_column
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows
from ipu_trainer.tasks.folders import is_hidden

_TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv")


def find_images(words: Sequence[str]) -> List[str]:
    """Paths of the images that words name, in that order and without repetition; those of a folder or pattern are sorted.

    A folder stands for the image files below it, without hidden ones. File names in a CSV are relative to its folder. Raises
    UserError for a word that names nothing, and for a name in a CSV that leaves its folder.
    """
    found: List[str] = []
    for word in words:
        if Path(word).is_dir():
            images = list(_below(Path(word)))
            if not images:
                raise UserError(f"{word} holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        elif Path(word).is_file():
            images = _listed(Path(word)) if word.lower().endswith(_TABLE_SUFFIXES) else [word]
        else:
            matches = map(Path, sorted(glob.glob(word, recursive=True)))  # noqa: PTH207  # an absolute pattern too
            images = [str(path) for path in matches if path.is_file() and not is_hidden(path.name)]
            if not images:
                raise MissingFileError(f"{word} is no file, no folder and no pattern that a file fits. Give images.")
        found += images
    return list(dict.fromkeys(found))


def _below(folder: Path) -> Iterator[str]:
    for place, below, names in os.walk(folder, onerror=_unreadable):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(names):
            path = Path(place, name)
            if not is_hidden(name) and is_image(path):
                yield str(path)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}), so its images would be missing.") from error


def _listed(table: Path) -> List[str]:
    root = table.parent.resolve()
    paths = []
    with open_text(table) as text:
        rows = table_rows(text)
        column = file_name_column(table, next(rows, []))
        for cells in rows:
            name = cells[column].strip().replace("\\", "/") if column < len(cells) else ""
            if not name:
                continue
            if root not in (root / name).resolve().parents:
                raise UserError(
                    f"{table}, line {rows.line_num}: {name} leaves the folder {table.parent}, to which its names are relative. "
                    "Put the table beside the images, or give the images themselves."
                )
            paths.append(str(table.parent / name))
    if not paths:
        raise UserError(f"{table} names no image.")
    return paths
