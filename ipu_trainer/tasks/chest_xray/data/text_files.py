"""Tables and lists as people have them: plain or packed by gzip, with a byte order mark or without, however separated."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, Iterator, List, TextIO, cast

from ipu_trainer.errors import UserError

_SEPARATORS = ",;\t"


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """UTF-8 with or without a byte order mark, or the UTF-16 that a mark announces (PowerShell writes it)."""
    with Path(path).open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        raw = cast(IO[bytes], gzip.GzipFile(fileobj=file) if packed else file)
        mark = raw.read(2)
        raw.seek(0)
        encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        yield io.TextIOWrapper(raw, encoding=encoding, newline="")


def read_lines(path: Path, what: str) -> List[str]:
    """All lines of a text. Raises ValueError naming the file and what it should be."""
    try:
        with open_text(path) as text:
            return text.read().splitlines()
    except (UnicodeError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error


def table_rows(text: TextIO) -> Any:  # csv.reader's type has no public name
    """Cells of a CSV line by line; the separator is the one that its first line has most of."""
    first = text.readline()
    separator = max(_SEPARATORS, key=first.count)
    return csv.reader(_with_first(first, text), delimiter=separator)


def _with_first(first: str, text: TextIO) -> Iterator[str]:
    if first:
        yield first
    yield from text
