"""Whether the image files of a prepared data set are still those that it was prepared from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

from ipu_trainer.tasks.chest_xray.data.integrity.digests import combined
from ipu_trainer.tasks.chest_xray.data.pixel_store import file_digest


def sources_of(images: Path, paths: Sequence[str], digests: Iterable[bytes]) -> Mapping[str, str]:
    """The manifest's sources: sizes and times of the files, which are quickly compared, and their contents."""
    return {"stamp": _stamp(images, paths) or "", "content": combined(digests)}


def sources_changed(images: Path, paths: Sequence[str], known: Mapping[str, Any]) -> bool:
    """Files with other times, of which a copy has some, are read to compare their contents."""
    stamp = _stamp(images, paths)
    if stamp is None:
        return True
    return bool(stamp != known["stamp"]) and combined(_digests(images, paths)) != str(known["content"])


def _digests(images: Path, paths: Sequence[str]) -> Iterable[bytes]:
    for path in paths:
        yield file_digest((images / path).read_bytes())


def _stamp(images: Path, paths: Sequence[str]) -> Optional[str]:
    """None where a file is missing."""
    try:
        found = [(images / path).stat() for path in paths]
    except OSError:
        return None
    return combined(f"{status.st_size} {status.st_mtime_ns};".encode() for status in found)
