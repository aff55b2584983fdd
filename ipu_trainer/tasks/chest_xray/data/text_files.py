"""CSV tables and lists of file names: plain, gzipped or alone in a zip, UTF-8 or UTF-16, separated by , ; or tabs."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Iterator, List, TextIO, cast

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import plain_name

_SEPARATORS = ",;\t"
_LONGEST_LINE = 16_000_000  # characters; a damaged or packed file may hold gigabytes without a line break


_UNREADABLE = (UnicodeError, OSError, EOFError, zlib.error, csv.Error, zipfile.BadZipFile, zipfile.LargeZipFile)


@contextlib.contextmanager
def open_text(path: Path, what: str = "CSV, plain or in gzip") -> Iterator[TextIO]:
    """Text in UTF-8, or in UTF-16 where a byte order mark says so (PowerShell writes it). Gzip and zip are recognised by content.

    Raises UserError naming the file and what it should be, for what cannot be read inside the block.
    """
    try:
        with Path(path).open("rb") as file:
            begin = file.read(4)
            file.seek(0)
            if begin[:2] == b"\x1f\x8b":
                raw = cast(IO[bytes], gzip.GzipFile(fileobj=file))
            else:
                raw = _only_member(file) if begin == b"PK\x03\x04" else file
            mark = raw.read(2)
            raw.seek(0)
            encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            yield io.TextIOWrapper(raw, encoding=encoding, newline="")
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error


def _only_member(file: IO[bytes]) -> IO[bytes]:
    packed = zipfile.ZipFile(file)
    names = [name for name in packed.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
    if len(names) != 1:
        raise zipfile.BadZipFile(f"the zip holds {len(names)} files, and one is read")
    try:
        return packed.open(names[0])
    except (NotImplementedError, RuntimeError) as error:  # an unknown method of compression, or a password
        raise zipfile.BadZipFile(str(error)) from error


def read_table(path: Path) -> List[List[str]]:
    """All lines of a CSV."""
    with open_text(path) as text:
        return list(table_rows(text))


def base_name(path: str) -> str:
    """The last part of a path of any operating system. Images in such tables are matched by it, and never opened by it."""
    return plain_name(path).replace("\\", "/").rsplit("/", 1)[-1]


def table_rows(text: TextIO) -> Any:  # csv.reader's type has no public name
    """Cells of a CSV line by line. The separator is the most frequent one in the first line."""
    lines = _lines(text)
    first = next(lines, "")
    separator = max(_SEPARATORS, key=first.count)
    return csv.reader(itertools.chain([first] if first else [], lines), delimiter=separator)


def _lines(text: TextIO) -> Iterator[str]:
    while True:
        line = text.readline(_LONGEST_LINE)
        if not line:
            return
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of {_LONGEST_LINE:,} characters or more")
        yield line
