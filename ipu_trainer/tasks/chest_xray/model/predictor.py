"""Probabilities of a run's model for images, computed in chunks of one size: `evaluate` and `predict` share it.

An image has the same probabilities in both, whatever other images are given, because every forward pass has the same shape.

Processes decode (kornia_rs holds Python's lock while it does). On a CPU each thread computes forward passes of its own with one
thread of arithmetic, so that no core waits for another one. Few chunks are in memory at a time.
"""

from __future__ import annotations

import collections
import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Generic, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.image_decoding import reading_file
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer

# Images of a forward pass: on a CPU, activations of few images stay in its caches.
_CHUNK_CPU, _CHUNK_GPU = 4, 64
_DECODED_TOGETHER = 16  # at most, by one process: with more, some processes would get none
_CHUNKS_AHEAD = 3  # for each thread
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

_IMAGES_A_PROCESS = 16  # fewer images are not worth the start of a process

Image = TypeVar("Image")
Outcome = Union[np.ndarray, ImageError]


class Predictor:
    """Probabilities of model for uint8 grayscale pixels of the side that it was trained at.

    precision: fp32, bf16 or fp16, the last two as autocast. device: default a GPU where there is one.
    """

    def __init__(
        self,
        model: Any,
        normalisation: Normalisation,
        precision: str = "fp32",
        device: Union[str, torch.device, None] = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if precision == "fp16" and self.device.type == "cpu":
            raise UserError("precision fp16 is for a GPU. Use bf16 or fp32 on a CPU.")
        self.model = model.eval().to(self.device)
        self.normalisation = normalisation
        self.precision = precision
        self._on_cpu = self.device.type == "cpu"
        self.num_threads = torch.get_num_threads()

    def probabilities(
        self, images: Iterable[Image], load: Optional[Callable[[Image], np.ndarray]] = None
    ) -> Iterator[Tuple[Image, Outcome]]:
        """(image, float64 (num_findings,)) of each image in their order, or its ImageError where load raised one.

        load gives the uint8 (side, side) pixels of an image, in processes; without it images are such pixels.
        """
        given = list(images)
        remaining = iter(given)
        for outcomes in self._computed(_chunks(given, load, _CHUNK_CPU if self._on_cpu else _CHUNK_GPU)):
            for outcome, image in zip(outcomes, remaining):  # in this order: zip asks the first for one more
                yield image, outcome

    def of_pixels(self, pixels: Iterable[np.ndarray], num_findings: int) -> np.ndarray:
        """float64 (num_images, num_findings) of decoded images."""
        rows = [outcome for _, outcome in self.probabilities(pixels)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), num_findings)

    def _computed(self, chunks: Iterable[List[Outcome]]) -> Iterator[List[Outcome]]:
        """Probabilities in place of the pixels in chunks."""
        if not self._on_cpu:
            with self._shortcut():
                yield from map(self._compute, chunks)
            return
        ahead: Deque[Future[List[Outcome]]] = collections.deque()
        with self._one_thread_each() as initializer, self._shortcut():
            pool = ThreadPoolExecutor(self.num_threads, initializer=initializer)
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(self._compute, chunk))
                    if len(ahead) >= _CHUNKS_AHEAD * self.num_threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
                pool.shutdown()

    def _compute(self, chunk: List[Outcome]) -> List[Outcome]:
        pixels = [image for image in chunk if isinstance(image, np.ndarray)]
        if not pixels:
            return chunk
        size = _CHUNK_CPU if self._on_cpu else _CHUNK_GPU
        filled = np.stack([*pixels, *[np.zeros_like(pixels[0])] * (size - len(pixels))])
        rows = iter(sigmoid(self._forward(filled)))
        return [next(rows) if isinstance(image, np.ndarray) else image for image in chunk]

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        """float64 logits (num_images, num_findings)."""
        with torch.inference_mode(), self._autocast():
            gray = torch.from_numpy(pixels).to(self.device).float() / 255.0
            outputs = self.model(pixel_values=self.normalisation(gray))
            return np.asarray(outputs.logits.double().cpu().numpy())

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])

    @contextlib.contextmanager
    def _one_thread_each(self) -> Iterator[Callable[[], None]]:
        """The threads' initializer. torch keeps the number for threads that start later, so it is restored."""
        try:
            yield lambda: torch.set_num_threads(1)
        finally:
            torch.set_num_threads(self.num_threads)

    def _shortcut(self) -> Any:
        """The last layer for the class token alone, where that is exact."""
        layer = ClassTokenLayer.of(self.model)
        return contextlib.nullcontext() if layer is None else layer.reading_class_token()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def _chunks(
    images: Sequence[Image], load: Optional[Callable[[Image], np.ndarray]], size: int
) -> Iterator[List[Outcome]]:
    """What load makes of images, in order, in lists of size; the last one may be shorter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = 0 if load is None else min(cores, len(images) // _IMAGES_A_PROCESS)
    together = min(size, _DECODED_TOGETHER)
    waiting: List[Outcome] = []
    loader = DataLoader(
        _Loaded(images, load),
        batch_size=together,
        collate_fn=list,
        num_workers=processes,
        generator=torch.Generator(),  # the caller's random numbers stay as they are
    )
    for decoded in loader:
        waiting += decoded
        if len(waiting) >= size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


class _Loaded(Dataset, Generic[Image]):  # type: ignore[type-arg]  # Dataset is not generic at run time on torch 2.0
    def __init__(self, images: Sequence[Image], load: Optional[Callable[[Image], np.ndarray]]) -> None:
        self.images, self.load = images, load

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Outcome:
        """numpy, which travels through a pipe: tensors would need shared memory, of which containers have little."""
        image: Any = self.images[position]
        try:
            with reading_file():
                return np.asarray(image) if self.load is None else self.load(image)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(error.strerror or str(error))
