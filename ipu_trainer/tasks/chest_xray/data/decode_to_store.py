"""Decoding all images of a data set into the pixel store, in several processes, with one scale for wide images."""

from __future__ import annotations

import collections
import os
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from ipu_trainer.tasks.chest_xray.data import image_decoding
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding, ValueRange
from ipu_trainer.tasks.chest_xray.data.integrity.digests import pixel_digest
from ipu_trainer.tasks.chest_xray.data.pixel_store import StoreWriter, file_digest, writable_rows
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError, read_image_file

_CHUNK = 16  # images of a task
_TASKS_AHEAD = 8  # for each worker


def decode_to_store(
    writer: StoreWriter, folder: Path, paths: Sequence[str], decoding: Decoding, workers: int = 0, progress: bool = True
) -> Tuple[Dict[int, str], Optional[ValueRange], Dict[str, Any]]:
    """Fill the store with the images at paths, which are relative to folder.

    Returns the reason for each row that cannot be decoded, the range of the images of more than 8 bits (None without any), and the
    manifest's wide_images. These are scaled by the range of all of them: those stored with another scale are decoded again.
    workers: decoding processes, 0 for one a core.
    """
    missing = writer.missing_rows().tolist()
    failures: Dict[int, str] = {}
    with tqdm(
        total=len(paths), initial=len(paths) - len(missing), unit="image", desc="decoding", disable=not progress
    ) as bar:
        for found in _decoded(missing, writer, folder, paths, decoding, workers):
            if found.reason:
                failures[found.row] = found.reason
            else:
                values = found.values or ValueRange()
                writer.commit(found.row, found.source, found.pixels, (values.whole, values.floating))
            bar.update()
    whole = ValueRange(*writer.ranges.max(axis=0).tolist())
    wide = np.flatnonzero(writer.ranges.max(axis=1)).tolist()
    again = [row for row in wide if not whole.gives_scale_of(ValueRange(*writer.ranges[row].tolist()))]
    for found in _decoded(again, writer, folder, paths, replace(decoding, scale=whole), workers):
        if found.reason:
            failures[found.row] = found.reason
        else:
            writer.set_pixel_digest(found.row, found.pixels)
    white = max((white for white, value in zip(whole.whites, (whole.whole, whole.floating)) if value), default=0)
    about = {"count": len(wide), "white": white, "darker": len(again), **asdict(whole)} if wide else {}
    return failures, whole if wide else None, about


class _DecodedRow(NamedTuple):
    """reason: why there are no pixels. source, pixels: digests of the file and of what was stored. values: the image's range."""

    row: int
    reason: str = ""
    source: bytes = b""
    pixels: bytes = b""
    values: Optional[ValueRange] = None


_Result = List[_DecodedRow]


def _decoded(
    wanted: Sequence[int], writer: StoreWriter, folder: Path, paths: Sequence[str], decoding: Decoding, workers: int
) -> Iterator[_DecodedRow]:
    """Of the wanted rows; without a reason, the pixels are in the store."""
    num_tasks = -(-len(wanted) // _CHUNK)
    if not num_tasks:
        return
    chunks = (wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK))
    tasks = ([(row, paths[row]) for row in chunk] for chunk in chunks)
    decode = _Decoder(writer.partial, len(paths), folder, decoding)
    for chunk in _run(tasks, decode, min(workers or os.cpu_count() or 1, num_tasks)):
        yield from chunk


def _run(
    tasks: Iterator[List[Tuple[int, str]]], decode: Callable[[Sequence[Tuple[int, str]]], _Result], num_workers: int
) -> Iterator[_Result]:
    """Results in the order of the tasks. Only a few tasks for each worker are submitted ahead."""
    if num_workers == 1:
        yield from map(decode, tasks)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        ahead: Deque[Future[_Result]] = collections.deque()
        for task in tasks:
            ahead.append(pool.submit(decode, task))
            if len(ahead) >= _TASKS_AHEAD * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@dataclass(frozen=True)
class _Decoder:
    """Decodes a task into the store. Without a scale in decoding, each image is scaled by its own range."""

    partial: Path
    num_rows: int
    images: Path
    decoding: Decoding

    def __call__(self, task: Sequence[Tuple[int, str]]) -> _Result:
        pixels = writable_rows(self.partial, self.num_rows, self.decoding.size)
        results: _Result = []
        for row, path in task:
            try:
                with image_decoding.reading_file():
                    content = read_image_file(self.images / path)
                    image = image_decoding.open_image(content)
                    pixels[row] = self.decoding.pixels_of(image)
            except (ImageError, OSError) as error:
                results.append(_DecodedRow(row, str(error) or type(error).__name__))
            else:
                values = self.decoding.range_for_scale(image)
                results.append(_DecodedRow(row, "", file_digest(content), pixel_digest(pixels[row].data), values))
        return results
