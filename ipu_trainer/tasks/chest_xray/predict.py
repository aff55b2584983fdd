"""New images read by a finished run: their probabilities and findings.

An image becomes pixels exactly as the run's training images did (run.json records how), and its probabilities are those that
`evaluate` would print.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ipu_trainer.errors import UserError
from ipu_trainer.json_files import check_shape
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError, read_image_file
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import check_record, number_or_nan
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_finished
from ipu_trainer.tasks.chest_xray.model.image_processor import load_processor, resample_name
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation, load_normalisation
from ipu_trainer.tasks.chest_xray.model.predictor import Outcome, Predictor
from ipu_trainer.tasks.pretrained import TRAIN_AGAIN
from ipu_trainer.tasks.run_record import Run
from ipu_trainer.training.acceleration.choices import choose_precision

ImageInput = Union[str, "os.PathLike[str]", Image.Image, np.ndarray]


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions of images that could be read, in their order.

    file_names: paths, or "image 0" for what has no path. probability: float64 (num_images, num_findings), columns as findings.
    thresholds: one a finding, NaN where validation showed one class only. rejected: reason by file name.
    """

    findings: Tuple[str, ...]
    file_names: Tuple[str, ...]
    probability: np.ndarray
    thresholds: Mapping[str, float]
    rejected: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def found(self) -> List[Tuple[str, ...]]:
        """For each image the findings whose probability reaches their threshold, "No Finding" apart."""
        return [above_threshold(row.tolist(), self.findings, self.thresholds) for row in self.probability]


class RunPredictor:
    """The model of a finished run, ready for new images.

    precision: fp32, bf16, fp16 or auto; default that of the run's evaluation.
    """

    def __init__(self, run: Run, precision: Optional[str] = None) -> None:
        record = run.record
        check_record(record, run.folder)
        self.run = run
        self.findings: Tuple[str, ...] = tuple(record["findings"])
        self.thresholds = {name: number_or_nan(record["thresholds"].get(name)) for name in self.findings}
        self.decoding = run_decoding(run)
        self.predictor = load_predictor(run.folder, record, self.decoding, precision)

    def predict(self, images: Union[ImageInput, Iterable[ImageInput]], progress: bool = False) -> ImagePredictions:
        """images: paths of image files, Pillow images, or uint8 grayscale arrays (height, width); one, or any number."""
        single = isinstance(images, (str, os.PathLike, Image.Image, np.ndarray))
        given = [images] if single else list(images)  # type: ignore[list-item, arg-type]
        names = [os.fspath(i) if isinstance(i, (str, os.PathLike)) else f"image {n}" for n, i in enumerate(given)]
        rows: List[Tuple[str, np.ndarray]] = []
        rejected: Dict[str, str] = {}
        outcomes = self.predictor.probabilities(given, _Reader(self.decoding))
        for name, (_, outcome) in tqdm(zip(names, outcomes), total=len(names), unit="image", disable=not progress):
            if isinstance(outcome, ImageError):
                rejected[name] = str(outcome)
            else:
                rows.append((name, outcome))
        probability = np.array([row for _, row in rows], dtype=np.float64).reshape(len(rows), len(self.findings))
        return ImagePredictions(
            self.findings, tuple(name for name, _ in rows), probability, dict(self.thresholds), rejected
        )

    def stream(self, paths: Iterable[str]) -> Iterator[Tuple[str, Outcome]]:
        """(path, probabilities or the reason why there are none) of image files, few of them in memory at a time."""
        return self.predictor.probabilities(paths, _Reader(self.decoding))


@dataclass(frozen=True)
class _Reader:
    """Pixels of whatever a user gives as an image. It is small, because each decoding process may get a copy."""

    decoding: Decoding

    def __call__(self, image: ImageInput) -> np.ndarray:
        """uint8 (size, size). Raises ImageError or OSError."""
        if isinstance(image, Image.Image):
            return self.decoding.pixels_of(ImageOps.exif_transpose(image))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 2:
                raise ImageError(
                    f"an array of {image.dtype} {image.shape}: give uint8 grayscale (height, width), or a Pillow image"
                )
            return self.decoding.pixels_of(Image.fromarray(image))
        return self.decoding(read_image_file(Path(image)))


def run_decoding(run: Run) -> Decoding:
    """How the run's training images became pixels. Earlier releases recorded the size alone."""
    data = run.record["data"]
    if "decoding" in data:
        return Decoding.from_dict(data["decoding"])
    return Decoding(int(data["size"]), resample_name(load_processor(run.folder)) or "bilinear")


def load_predictor(
    run_dir: Path, record: Mapping[str, Any], decoding: Decoding, precision: Optional[str] = None
) -> Predictor:
    """The run's model with the precision of its training, if a host has that, or another one."""
    if precision is None:
        settings = {**record["settings"]["training"], **record["settings"]["recipe"]}
        trained = settings.get("precision", "auto")
        precision = trained if trained in ("fp32", "bf16") else "auto"  # fp16 was a device's, or a GPU's
    chosen = choose_precision(precision, use_cpu=False).name
    normalisation = load_normalisation(run_dir, decoding.size, decoding.resample)
    _check_normalisation(normalisation, record, run_dir)
    model = load_finished(run_dir)
    outputs = [name for _, name in sorted(model.config.id2label.items())]
    if outputs != list(record["findings"]):
        raise UserError(
            f"{run_dir}: config.json names the outputs {', '.join(map(str, outputs))[:200]}, but run.json the findings "
            f"{', '.join(record['findings'])[:200]}. {TRAIN_AGAIN}"
        )
    return Predictor(model, normalisation, chosen)


def _check_normalisation(normalisation: Normalisation, record: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UserError where the preprocessor has another mean or std than training had. Earlier releases recorded neither."""
    trained = record["settings"].get("normalisation")
    if trained is None:
        return
    shape = {"mean": [float], "std": [float]}
    check_shape(trained, shape, f"{run_dir}/run.json: settings.normalisation", TRAIN_AGAIN)
    wanted, found = [*trained["mean"], *trained["std"]], [*normalisation.mean, *normalisation.std]
    if len(wanted) != len(found) or not np.allclose(wanted, found, rtol=1e-6, atol=0):
        raise UserError(
            f"{run_dir}: its preprocessor has mean and std {found}, but it was trained with {wanted} (run.json). Restore "
            "preprocessor_config.json, or train the run again into another folder."
        )


def above_threshold(
    probability: Sequence[float], findings: Sequence[str], thresholds: Mapping[str, float]
) -> Tuple[str, ...]:
    """Names of the findings, "No Finding" apart, whose probability reaches their threshold; a NaN threshold has none."""
    return tuple(name for name, value in zip(findings, probability) if name != NO_FINDING and value >= thresholds[name])
