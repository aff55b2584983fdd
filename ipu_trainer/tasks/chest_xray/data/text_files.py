"""CSV tables and lists of file names: plain or gzipped, UTF-8 or UTF-16, separated by commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import zlib
from pathlib import Path
from typing import IO, Any, Iterator, List, TextIO, cast

from ipu_trainer.errors import UserError

_SEPARATORS = ",;\t"


@contextlib.contextmanager
def open_text(path: Path, what: str = "CSV, plain or in gzip") -> Iterator[TextIO]:
    """Text in UTF-8, or in UTF-16 where a byte order mark says so (PowerShell writes it). Gzip is recognised by its content.

    Raises UserError naming the file and what it should be, for what cannot be read inside the block.
    """
    try:
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            raw = cast(IO[bytes], gzip.GzipFile(fileobj=file) if packed else file)
            mark = raw.read(2)
            raw.seek(0)
            encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            yield io.TextIOWrapper(raw, encoding=encoding, newline="")
    except (UnicodeError, OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error


def read_table(path: Path) -> List[List[str]]:
    """All lines of a CSV."""
    with open_text(path) as text:
        return list(table_rows(text))


def base_name(path: str) -> str:
    """The last part of a path of any operating system. Images in such tables are matched by it, and never opened by it."""
    return path.strip().replace("\\", "/").rsplit("/", 1)[-1]


def table_rows(text: TextIO) -> Any:  # csv.reader's type has no public name
    """Cells of a CSV line by line. The separator is the most frequent one in the first line."""
    first = text.readline()
    separator = max(_SEPARATORS, key=first.count)
    return csv.reader(itertools.chain([first] if first else [], text), delimiter=separator)
