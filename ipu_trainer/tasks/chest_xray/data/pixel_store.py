"""The pixel store: every image decoded once to uint8 grayscale at the model's size, and read through a memory map.

File layout (`pixels.u8`), little-endian:

    bytes 0..7      magic  b"IPUTPIX1"
    bytes 8..11     length of the header, uint32
    bytes 12..4095  header: JSON with version, shape, resample, decoder and source hash, padded with spaces
    bytes 4096..    rows x size x size bytes, row-major

While it is being filled, the file is called `pixels.u8.partial`. Beside it are a journal with one record a row (done flag and
digest of the source file), the digest of each row's pixels, and the largest value of each image of more than 8 bits, so that an
interrupted run resumes. Rows are written in place, so memory use is constant. All these files are mapped, and writing to a mapped
file on a full disk ends the process (SIGBUS): so their whole length is allocated first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

import numpy as np

from ipu_trainer.errors import UserError

STORE_FILE = "pixels.u8"
VERSION = 1
_MAGIC = b"IPUTPIX1"
_HEADER_BYTES = 4096
_DIGEST_BYTES = 16
_ZEROS = bytes(1 << 20)


class StoreError(UserError):
    """A pixel store that is missing, truncated or of another version."""


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds. source_hash covers names and contents of the source files, in row order.

    pixels: the digest of its pixels (integrity/digests.py); None in stores of earlier releases.
    """

    num_rows: int
    size: int
    resample: str
    decoder: str
    source_hash: str
    version: int = VERSION
    pixels: Optional[str] = None

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
        fields = {name: values[name] for name in StoreHeader.__dataclass_fields__ if name != "pixels"}
        header = StoreHeader(**fields, pixels=values.get("pixels"))
        actual, promised = path.stat().st_size, header.file_bytes
    except StoreError:
        raise
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} has a broken header ({error}). {again}") from error
    if actual != promised:
        raise StoreError(f"{path} has {actual:,} bytes, its header promises {promised:,}: truncated. {again}")
    return header


def open_pixels(path: Path) -> np.ndarray:
    """uint8 (num_rows, size, size), a read-only memory map: rows are read from disk when they are used."""
    header = read_header(path)
    shape = (header.num_rows, header.size, header.size)
    if not header.num_rows:
        return np.zeros(shape, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=_HEADER_BYTES, shape=shape)


def stored_rows(path: Path, rows: Iterable[int]) -> Iterator[memoryview]:
    """The pixels of rows, each until the next one is asked for.

    They are read and not mapped, because a whole store that is mapped counts as memory of the process.
    """
    header = read_header(path)
    row_bytes = header.size * header.size
    buffer = memoryview(bytearray(row_bytes))
    with path.open("rb", buffering=0) as file:
        for row in rows:
            file.seek(_HEADER_BYTES + int(row) * row_bytes)
            yield buffer[: file.readinto(buffer)]


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
        journal, ranges, digests = (path.with_name(path.name + end) for end in (".journal", ".ranges", ".digests"))
        lengths = {
            self.partial: _HEADER_BYTES + num_rows * size * size,
            journal: records * record_bytes,
            ranges: records * 8,
            digests: records * _DIGEST_BYTES,
        }
        resumable = self._plan_path.is_file() and self._plan_path.read_text() == plan
        resumable = resumable and all(file.is_file() and file.stat().st_size == n for file, n in lengths.items())
        if not resumable:
            self.discard()
        try:
            for file, length in lengths.items():
                _allocate(file, length)
            if not resumable:
                self._plan_path.write_text(plan)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            if not resumable:
                self.discard()
            raise UserError(
                f"{path.parent}: no space for {sum(lengths.values()):,} bytes, which {num_rows:,} images at {size} pixels take "
                f"({error.strerror}). Free some, or give an --output on another disk, and give the same command again."
            ) from error
        self._journal = np.memmap(journal, dtype=np.uint8, mode="r+", shape=(records, record_bytes))
        self.ranges = np.memmap(ranges, dtype=np.float32, mode="r+", shape=(records, 2))
        self._digests = np.memmap(digests, dtype=np.uint8, mode="r+", shape=(records, _DIGEST_BYTES))

    def missing_rows(self) -> np.ndarray:
        """Rows that no earlier run has finished."""
        return np.flatnonzero(self._journal[: self.num_rows, 0] == 0)

    def commit(self, row: int, digest: bytes, pixels: bytes, largest: Tuple[float, float] = (0.0, 0.0)) -> None:
        """Record that the pixels of row are in the file, the digests of its source file and of them, and its entry of `ranges`."""
        self.ranges[row] = largest
        self.set_pixel_digest(row, pixels)
        self._journal[row, 1:] = np.frombuffer(digest, dtype=np.uint8)
        self._journal[row, 0] = 1

    def digest(self, row: int) -> bytes:
        return bytes(self._journal[row, 1:])

    def set_pixel_digest(self, row: int, digest: bytes) -> None:
        """Of a row that was decoded again."""
        self._digests[row] = np.frombuffer(digest, dtype=np.uint8)

    def pixel_digest(self, row: int) -> bytes:
        return bytes(self._digests[row])

    def finish(self, source_hash: str, pixels: str) -> StoreHeader:
        """Write the header and give the store its name. The journal stays until discard(), after the manifest is written."""
        header = StoreHeader(self.num_rows, self.size, self.resample, self.decoder, source_hash, pixels=pixels)
        with self.partial.open("r+b") as file:
            file.write(header.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)
        return header

    def discard(self) -> None:
        discard_journal(self.path)


def is_being_filled(path: Path) -> bool:
    """Whether a preparation of the store has begun and not ended: what lies beside it is its own."""
    return path.with_name(path.name + ".plan").is_file()


def _allocate(path: Path, length: int) -> None:
    """A file of length bytes, new ones zero, for which the disk has space. Raises OSError if it has not."""
    with path.open("r+b" if path.is_file() else "w+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise
            begin = os.fstat(file.fileno()).st_size  # a file system that cannot: what is missing is written
            file.seek(begin)
            for start in range(begin, length, len(_ZEROS)):
                file.write(_ZEROS[: length - start])
            file.flush()
            os.fsync(file.fileno())


def discard_journal(path: Path) -> None:
    """Remove the files that lie beside a store while it is being filled."""
    for ending in (".partial", ".journal", ".ranges", ".digests", ".plan"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).unlink()


def writable_rows(partial: Path, num_rows: int, size: int) -> np.ndarray:
    """uint8 (num_rows, size, size) of a store that is being filled."""
    return np.memmap(partial, dtype=np.uint8, mode="r+", offset=_HEADER_BYTES, shape=(num_rows, size, size))


def file_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
