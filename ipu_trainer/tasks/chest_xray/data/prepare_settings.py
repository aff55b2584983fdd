"""What `ipu-trainer prepare chest-xray` is asked for, checked before work."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data import image_decoding as image_files
from ipu_trainer.tasks.chest_xray.data.image_folder import printable
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices
from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import check_format
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
from ipu_trainer.tasks.chest_xray.data.pixels.window import WINDOWS
from ipu_trainer.tasks.chest_xray.data.splits import METHODS


@dataclass(frozen=True)
class PrepareSettings:
    """Labels are in csv, or, without it, in files in images, or in a Hugging Face data set with its images.

    findings: None takes those of the format (NIH's fifteen for its table), empty every name. split None is official if lists are
    given, else the one that the data set gives, else by-patient, else by image. uncertain and blank: see LabelChoices.
    """

    csv: Optional[Path]
    images: Optional[Path]
    output: Path
    train_val_list: Optional[Path] = None
    test_list: Optional[Path] = None
    size: int = 224
    resample: str = "bilinear"
    window: str = "auto"
    workers: int = 0
    in_place: bool = False
    only_present: bool = False
    skip_bad: bool = False
    split: Optional[str] = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    findings: Optional[Tuple[str, ...]] = None
    format: str = "auto"
    uncertain: str = "ignore"
    blank: str = "ignore"
    dataset: Optional[str] = None

    def __post_init__(self) -> None:
        for name, path in (
            ("--csv", self.csv),
            ("--train_val_list", self.train_val_list),
            ("--test_list", self.test_list),
        ):
            if path is not None and not path.is_file():
                raise UserError(f"{name} {path} is not a file.")
        if self.dataset is not None:
            others = {"--csv": self.csv, "--images": self.images, "--in_place": self.in_place or None}
            given = [flag for flag, value in others.items() if value is not None]
            if given or self.format != "auto":
                more = ", ".join([*given, *(["--format"] if self.format != "auto" else [])])
                raise UserError(f"--dataset brings its own images and labels. Leave {more} out.")
        elif self.images is None or not self.images.is_dir():
            raise UserError(f"--images {self.images} is not a folder. Give the folder that holds the image files.")
        if os.path.lexists(self.output) and not self.output.is_dir():
            raise UserError(f"--output {self.output} is a file, or a link to nothing. Give a folder.")
        if printable(str(self.output)) != str(self.output):
            raise UserError(
                f"--output {printable(str(self.output))} is no UTF-8, and libraries write there. Give another."
            )
        if not 16 <= self.size <= 1024:
            raise UserError(f"--size {self.size} is outside 16 to 1024 pixels. ViT takes 224.")
        if self.resample not in image_files.RESAMPLES:
            raise UserError(f"--resample {self.resample!r} is not one of {', '.join(image_files.RESAMPLES)}.")
        if self.window not in WINDOWS:
            raise UserError(f"--window {self.window!r} is not one of {', '.join(WINDOWS)}.")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} must be at least 1, or 0 for one for each core.")
        if (self.train_val_list is None) != (self.test_list is None):
            raise UserError("--train_val_list and --test_list belong together. Give both, or neither.")
        if self.split is not None and self.split not in METHODS:
            raise UserError(f"--split {self.split!r} is not one of {', '.join(METHODS)}.")
        if self.split == "official" and self.train_val_list is None:
            raise UserError("--split official needs NIH's lists: --train_val_list FILE --test_list FILE.")
        check_format(self.format)
        if self.images is not None and self.in_place and not os.access(self.images, os.W_OK):
            raise UserError(f"--in_place writes into {self.images}, which is read-only. Leave it out.")
        assert self.choices  # checks --uncertain and --blank

    @property
    def choices(self) -> LabelChoices:
        return LabelChoices(self.findings, self.uncertain, self.blank)


def identity_of(settings: PrepareSettings, label_files: Sequence[Path], dataset: Any = None) -> str:
    """A hash of everything that determines the result, so not of the number of workers.

    label_files: those that are read without or beside a csv. dataset: what tells a Hugging Face data set from another one.
    Flags that an earlier release did not know count only where they are used, so that its folders are still known.
    """
    values = asdict(replace(settings, workers=0, in_place=False))
    known = {item.name: item.default for item in fields(PrepareSettings)}
    for name in ("format", "uncertain", "blank", "dataset", "window"):
        if values[name] == known[name]:
            values.pop(name)
    if settings.findings is None:
        values["findings"] = NIH_FINDINGS
    if settings.csv is not None:
        values["csv_digest"] = _digest_of(settings.csv)
    if label_files:
        values["label_files"] = [_digest_of(path) for path in label_files]
    if dataset is not None:
        values["dataset_content"] = dataset
    for name in ("train_val_list", "test_list"):
        path = getattr(settings, name)
        values[name] = None if path is None else _digest_of(path)
    for name in ("csv", "output"):
        values.pop(name)
    values["images"] = None if settings.images is None else str(settings.images.resolve())
    return hashlib.blake2b(json.dumps(values, default=str, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()
