"""Probabilities of a run's model for images, computed in chunks of one size: `evaluate` and `predict` share it.

An image has the same probabilities in both, whatever other images are given, because every forward pass has the same shape.

On a CPU each thread decodes images and computes their forward pass with one thread of arithmetic, so that no core waits for
another one. On a GPU threads decode, and the calling thread computes. Few chunks are in memory at a time.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Tuple, TypeVar, Union

import numpy as np
import torch

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.image_decoding import ImageError
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer

# Images of a forward pass. On a CPU, activations of few images stay in its caches.
_CHUNK_CPU, _CHUNK_GPU = 4, 64
_CHUNKS_AHEAD = 3  # for each thread
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Image = TypeVar("Image")
Outcome = Union[np.ndarray, ImageError]
_Loaded = Tuple[List[Image], np.ndarray, Dict[int, ImageError]]


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
        self, images: Iterable[Image], load: Callable[[Image], np.ndarray]
    ) -> Iterator[Tuple[Image, Outcome]]:
        """(image, float64 (num_findings,)) of each image in their order, or its ImageError where load raised one.

        load gives the uint8 (side, side) pixels of an image; several threads call it at a time.
        """
        size = _CHUNK_CPU if self._on_cpu else _CHUNK_GPU
        remaining = iter(images)
        chunks = iter(lambda: list(itertools.islice(remaining, size)), [])
        ahead: Deque[Future[Tuple[_Loaded[Image], Optional[np.ndarray]]]] = collections.deque()
        with self._one_thread_each() as initializer, self._shortcut():
            pool = ThreadPoolExecutor(self.num_threads, initializer=initializer)
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(self._work, chunk, load, size))
                    if len(ahead) >= _CHUNKS_AHEAD * self.num_threads:
                        yield from self._outcomes(*ahead.popleft().result())
                while ahead:
                    yield from self._outcomes(*ahead.popleft().result())
            finally:
                for future in ahead:
                    future.cancel()
                pool.shutdown()

    def of_pixels(self, pixels: Iterable[np.ndarray], num_findings: int) -> np.ndarray:
        """float64 (num_images, num_findings) of decoded images."""
        rows = [outcome for _, outcome in self.probabilities(pixels, lambda image: image)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), num_findings)

    def _work(
        self, chunk: List[Image], load: Callable[[Image], np.ndarray], size: int
    ) -> Tuple[_Loaded[Image], Optional[np.ndarray]]:
        loaded: List[np.ndarray] = []
        failures: Dict[int, ImageError] = {}
        for position, image in enumerate(chunk):
            try:
                loaded.append(load(image))
            except ImageError as error:
                failures[position] = error
            except OSError as error:
                failures[position] = ImageError(error.strerror or str(error))
        if not loaded:
            return (chunk, np.zeros((0, 0, 0), dtype=np.uint8), failures), np.zeros((0, 0))
        empty = [np.zeros_like(loaded[0])] * (size - len(loaded))
        pixels = np.stack([*loaded, *empty])
        found = (chunk, pixels, failures)
        return found, self._forward(pixels) if self._on_cpu else None

    def _outcomes(self, loaded: _Loaded[Image], logits: Optional[np.ndarray]) -> Iterator[Tuple[Image, Outcome]]:
        chunk, pixels, failures = loaded
        found = iter(sigmoid(self._forward(pixels) if logits is None else logits))
        for position, image in enumerate(chunk):
            error = failures.get(position)
            yield image, next(found) if error is None else error

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
            yield lambda: torch.set_num_threads(1) if self._on_cpu else None
        finally:
            torch.set_num_threads(self.num_threads)

    def _shortcut(self) -> Any:
        """The last layer for the class token alone, where that is exact."""
        layer = ClassTokenLayer.of(self.model)
        return contextlib.nullcontext() if layer is None else layer.reading_class_token()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
