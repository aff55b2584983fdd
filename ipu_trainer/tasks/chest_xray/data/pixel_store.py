"""The pixel store: every image decoded once to uint8 grayscale at the model's size, and read through a memory map.

File layout (`pixels.u8`), little-endian:

    bytes 0..7      magic  b"IPUTPIX1"
    bytes 8..11     length of the header, uint32
    bytes 12..4095  header: JSON with version, shape, resample, decoder and source hash, padded with spaces
    bytes 4096..    rows x size x size bytes, row-major

While it is being filled, the file is called `pixels.u8.partial`. Beside it are a journal with one record a row (done flag and
digest of the source file) and the largest value of each image of more than 8 bits, so that an interrupted run resumes. Rows are
written in place, so memory use is constant.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np

from ipu_trainer.errors import UserError

STORE_FILE = "pixels.u8"
VERSION = 1
_MAGIC = b"IPUTPIX1"
_HEADER_BYTES = 4096
_DIGEST_BYTES = 16


class StoreError(UserError):
    """A pixel store that is missing, truncated or of another version."""


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds. source_hash covers names and contents of the source files, in row order."""

    num_rows: int
    size: int
    resample: str
    decoder: str
    source_hash: str
    version: int = VERSION

    def to_bytes(self) -> bytes:
        text = json.dumps({**self.__dict__, "dtype": "|u1", "layout": "rows, height, width"}).encode()
        head = _MAGIC + len(text).to_bytes(4, "little") + text
        assert len(head) <= _HEADER_BYTES
        return head.ljust(_HEADER_BYTES, b" ")

    @property
    def file_bytes(self) -> int:
        return _HEADER_BYTES + self.num_rows * self.size * self.size


def read_header(path: Path) -> StoreHeader:
    """Raises StoreError if the file is no complete pixel store."""
    again = "Run `ipu-trainer prepare chest-xray` again into a new folder."
    if not path.is_file():
        raise StoreError(f"{path} is missing. {again}")
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:8] != _MAGIC:
        raise StoreError(f"{path} is no pixel store (it starts with {head[:8]!r}). {again}")
    try:
        values: Dict[str, Any] = json.loads(head[12 : 12 + int.from_bytes(head[8:12], "little")])
        version = int(values["version"])
        if version != VERSION:
            raise StoreError(f"{path} has version {version}, this release reads {VERSION}. {again}")
        header = StoreHeader(**{name: values[name] for name in StoreHeader.__dataclass_fields__})
    except (KeyError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise StoreError(f"{path} has a broken header ({error}). {again}") from error
    actual = path.stat().st_size
    if actual != header.file_bytes:
        raise StoreError(f"{path} has {actual:,} bytes, its header promises {header.file_bytes:,}: truncated. {again}")
    return header


def open_pixels(path: Path) -> np.ndarray:
    """uint8 (num_rows, size, size), a read-only memory map: rows are read from disk when they are used."""
    header = read_header(path)
    shape = (header.num_rows, header.size, header.size)
    if not header.num_rows:
        return np.zeros(shape, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=_HEADER_BYTES, shape=shape)


class StoreWriter:
    """Fills a store row by row, from any number of processes, and resumes. plan: a hash of what is to be stored."""

    def __init__(self, path: Path, num_rows: int, size: int, resample: str, decoder: str, plan: str) -> None:
        self.path, self.num_rows, self.size = path, num_rows, size
        self.resample, self.decoder = resample, decoder
        self.partial = path.with_name(path.name + ".partial")
        self._plan_path = path.with_name(path.name + ".plan")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and self._plan_path.is_file() and not self.partial.exists():
            os.replace(path, self.partial)  # an earlier run ended between finish() and its manifest
        records, record_bytes = max(1, num_rows), 1 + _DIGEST_BYTES
        journal, ranges = (path.with_name(path.name + ending) for ending in (".journal", ".ranges"))
        lengths = {
            self.partial: _HEADER_BYTES + num_rows * size * size,
            journal: records * record_bytes,
            ranges: records * 8,
        }
        resumable = self._plan_path.is_file() and self._plan_path.read_text() == plan
        if not resumable or any(not file.is_file() or file.stat().st_size != n for file, n in lengths.items()):
            self.discard()
            for file, length in lengths.items():
                with file.open("wb") as handle:
                    handle.truncate(length)
            self._plan_path.write_text(plan)
        self._journal = np.memmap(journal, dtype=np.uint8, mode="r+", shape=(records, record_bytes))
        self.ranges = np.memmap(ranges, dtype=np.float32, mode="r+", shape=(records, 2))

    def missing_rows(self) -> np.ndarray:
        """Rows that no earlier run has finished."""
        return np.flatnonzero(self._journal[: self.num_rows, 0] == 0)

    def commit(self, row: int, digest: bytes, largest: Tuple[float, float] = (0.0, 0.0)) -> None:
        """Record that the pixels of row are in the file, the digest of its source file, and its entry of `ranges`."""
        self.ranges[row] = largest
        self._journal[row, 1:] = np.frombuffer(digest, dtype=np.uint8)
        self._journal[row, 0] = 1

    def digest(self, row: int) -> bytes:
        return bytes(self._journal[row, 1:])

    def finish(self, source_hash: str) -> StoreHeader:
        """Write the header and give the store its name. The journal stays until discard(), after the manifest is written."""
        header = StoreHeader(self.num_rows, self.size, self.resample, self.decoder, source_hash)
        with self.partial.open("r+b") as file:
            file.write(header.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)
        return header

    def discard(self) -> None:
        discard_journal(self.path)


def discard_journal(path: Path) -> None:
    """Remove the files that lie beside a store while it is being filled."""
    for ending in (".partial", ".journal", ".ranges", ".plan"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).unlink()


def writable_rows(partial: Path, num_rows: int, size: int) -> np.ndarray:
    """uint8 (num_rows, size, size) of a store that is being filled."""
    return np.memmap(partial, dtype=np.uint8, mode="r+", offset=_HEADER_BYTES, shape=(num_rows, size, size))


def file_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
