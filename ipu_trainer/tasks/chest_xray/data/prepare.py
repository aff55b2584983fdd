"""`ipu-trainer prepare chest-xray`: from a label CSV and an image folder to a checked, split and decoded data set.

    prepared/
      prepared.json    manifest, written last: a folder without it is not finished
      pixels.u8        decoded pixels (pixel_store.py)
      metadata/        one row an image, as a `datasets` Arrow data set
      metadata.jsonl   the same rows in Hugging Face's imagefolder form
      rejected.csv     unusable input (file, line, reason)

One pass finds everything wrong with the input. Without skip_bad, only rejected.csv is then written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.atomic import remove_leftovers, write_csv, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data import image_decoding as image_files
from ipu_trainer.tasks.chest_xray.data.decode_to_store import decode_to_store
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding
from ipu_trainer.tasks.chest_xray.data.imagefolder_metadata import (
    METADATA,
    read_records,
    records,
    write_beside_images,
    write_records,
)
from ipu_trainer.tasks.chest_xray.data.label_table import Rejection, Row, read_label_table
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
from ipu_trainer.tasks.chest_xray.data.pixel_store import (
    STORE_FILE,
    StoreWriter,
    discard_journal,
)
from ipu_trainer.tasks.chest_xray.data.pixels import dicom
from ipu_trainer.tasks.chest_xray.data.pixels.window import WINDOWS
from ipu_trainer.tasks.chest_xray.data.splits import (
    METHODS,
    SPLITS,
    SplitList,
    listed_rows,
    official_split,
    read_split_list,
    refuse_empty_training,
    shared_patients,
    split_by_patient,
    split_random_images,
)

FORMAT_VERSION = 1
MANIFEST = "prepared.json"
_ROWS_AT_ONCE = 1000  # of the metadata: a table of all rows takes 0.2 GB for the whole of ChestX-ray14


@dataclass(frozen=True)
class PrepareSettings:
    """Empty findings accept every name; split None is official if lists are given, else by-patient."""

    csv: Path
    images: Path
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
    findings: Tuple[str, ...] = NIH_FINDINGS

    def __post_init__(self) -> None:
        for name, path in (
            ("--csv", self.csv),
            ("--train_val_list", self.train_val_list),
            ("--test_list", self.test_list),
        ):
            if path is not None and not path.is_file():
                raise UserError(f"{name} {path} is not a file.")
        if not self.images.is_dir():
            raise UserError(f"--images {self.images} is not a folder. Give the folder that holds the image files.")
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"--output {self.output} is a file. Give a folder.")
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
        if self.in_place and not os.access(self.images, os.W_OK):
            raise UserError(f"--in_place writes into {self.images}, which is read-only. Leave it out.")

    @property
    def split_method(self) -> str:
        return self.split or ("official" if self.train_val_list is not None else "by-patient")


@dataclass(frozen=True)
class PreparedSummary:
    """The result. rejected: lines of rejected.csv; finished is False if they stopped the run."""

    output: Path
    finished: bool
    reused: bool
    num_images: int
    rejected: int
    manifest: Dict[str, Any]

    def describe(self) -> str:
        if not self.finished:
            before = "" if self.manifest["decoded"] else " (images were not decoded yet)"
            return (
                f"Nothing was written: {self.rejected} lines or files cannot be used{before}. {self.output / 'rejected.csv'} "
                "names each with its reason. Correct them, or leave them out with --skip_bad."
            )
        counts = self.manifest["counts"]
        width = max(len(name) for name in self.manifest["findings"])
        lines = [f"{'':{width}}  " + "  ".join(f"{split:>10}" for split in SPLITS)]
        lines.append(f"{'images':{width}}  " + "  ".join(f"{counts[split]['images']:>10,}" for split in SPLITS))
        lines.append(f"{'patients':{width}}  " + "  ".join(f"{counts[split]['patients']:>10,}" for split in SPLITS))
        for name in self.manifest["findings"]:
            values = "  ".join(f"{counts[split]['findings'][name]:>10,}" for split in SPLITS)
            lines.append(f"{name:{width}}  {values}")
        head = "already prepared with these settings" if self.reused else "prepared"
        left_out = f", {self.rejected} rejected (rejected.csv)" if self.rejected else ""
        absent, ages = self.manifest["rows_without_image"], self.manifest["unknown_ages"]
        left_out += f", {absent} rows without image left out" if absent else ""
        repeated = self.manifest.get("repeated_rows")
        left_out += f", {repeated} repeated rows" if repeated else ""
        left_out += f", {ages} unknown ages" if ages else ""
        wide = self.manifest.get("wide_images")
        if wide:
            largest = max(wide["whole"], wide["floating"])
            lines.append(
                f"{wide['count']:,} images of more than 8 bits: the largest value is {largest:,g}, so {wide['white']:,} is white"
            )
        if wide and wide["darker"]:
            lines.append(
                f"{wide['darker']:,} of these have much smaller values. That is right if they are dark; if their scale is "
                "another one (10-bit films among 12-bit ones), --window percentile scales each image by itself."
            )
        return f"{self.output}: {head}, {self.num_images:,} images{left_out}\n" + "\n".join(lines)


def prepare(settings: PrepareSettings, progress: bool = True) -> PreparedSummary:
    """Prepare a data set. Raises UserError for settings or tables that cannot work; bad rows and files are listed."""
    identity = _identity(settings)
    manifest_path = settings.output / MANIFEST
    if manifest_path.is_file():
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest.get("identity") != identity:
            raise UserError(
                f"{settings.output} was prepared with other settings or another CSV. Give another --output, or remove it."
            )
        discard_journal(settings.output / STORE_FILE)  # of a run that ended between its manifest and here
        if settings.in_place:
            write_beside_images(settings.images, read_records(settings.output / METADATA))
        return PreparedSummary(settings.output, True, True, manifest["num_images"], manifest["rejected"], manifest)

    remove_leftovers(settings.output)
    found = read_label_table(settings.csv, settings.images, settings.findings, settings.only_present)
    rejections = list(found.rejections)
    rows = list(found.rows)
    lists = None
    if settings.split_method == "official":
        assert settings.train_val_list is not None and settings.test_list is not None
        lists = read_split_list(settings.train_val_list), read_split_list(settings.test_list)
        rows, strays = listed_rows(rows, *lists)
        rejections += strays
    if not rows and not rejections:
        raise UserError(f"{settings.csv} and {settings.images} have no image in common. Are they one data set?")
    if rejections and not settings.skip_bad:  # before anything is decoded
        return _refused(settings.output, rejections, decoded=False)
    splits = _split(rows, settings, lists)

    dicom.check_paths((row.path for row in rows), settings.in_place)
    decoding = Decoding(settings.size, settings.resample, window=settings.window)
    plan = hashlib.blake2b(digest_size=16)
    window = () if settings.window == "auto" else (settings.window,)  # a plan of an earlier release is resumed
    for part in (settings.size, settings.resample, *window, settings.images.resolve(), *(row.path for row in rows)):
        plan.update(f"{part}\0".encode())
    writer = StoreWriter(
        settings.output / STORE_FILE, len(rows), settings.size, settings.resample, image_files.DECODER, plan.hexdigest()
    )
    paths = [row.path for row in rows]
    failures, scale, wide = decode_to_store(writer, settings.images, paths, decoding, settings.workers, progress)
    rejections += [Rejection(rows[position].path, rows[position].line, reason) for position, reason in failures.items()]
    if rejections and not settings.skip_bad:
        writer.discard()
        return _refused(settings.output, rejections, decoded=True)

    pixel_rows = np.delete(np.arange(len(rows)), sorted(failures))
    splits = [splits[position] for position in pixel_rows]
    rows = [rows[position] for position in pixel_rows]
    try:
        refuse_empty_training(splits, settings.split_method, len({row.patient_id for row in rows}))
    except ValueError:
        writer.discard()
        raise
    findings = sorted({name for row in rows for name in row.findings})
    fingerprint = hashlib.blake2b(digest_size=16)
    for position, row, split in zip(pixel_rows.tolist(), rows, splits):
        fingerprint.update(f"{row.path}\0{'|'.join(row.findings)}\0{split}\0".encode() + writer.digest(position))
    source_hash = fingerprint.hexdigest()

    _write_rejections(settings.output, rejections)
    _write_arrow(settings.output / "metadata", rows, pixel_rows, splits, findings)
    write_records(settings.output / METADATA, records(rows, findings))
    if settings.in_place:
        write_beside_images(settings.images, records(rows, findings))
    writer.finish(source_hash)
    manifest = {
        "format_version": FORMAT_VERSION,
        "identity": identity,
        "fingerprint": source_hash,
        "findings": findings,
        "num_images": len(rows),
        "size": settings.size,
        "resample": settings.resample,
        "decoder": image_files.DECODER,
        "decoding": replace(decoding, scale=scale).to_dict(),
        "split": {
            "method": settings.split_method,
            "validation_fraction": settings.validation_fraction,
            "test_fraction": None if settings.split_method == "official" else settings.test_fraction,
            "seed": settings.seed,
            "images_of_patients_in_another_split": shared_patients(splits, [row.patient_id for row in rows]),
        },
        "counts": _counts(rows, splits, findings),
        "rejected": len(rejections),
        "rows_without_image": found.num_rows_without_image,
        "unknown_ages": found.num_unknown_ages,
        "repeated_rows": found.num_repeated_rows,
        "wide_images": wide,
        "source": {"csv": str(settings.csv), "images": str(settings.images)},
    }
    write_json(manifest_path, manifest)
    writer.discard()
    return PreparedSummary(settings.output, True, False, len(rows), len(rejections), manifest)


def _split(rows: Sequence[Row], settings: PrepareSettings, lists: Optional[Tuple[SplitList, SplitList]]) -> List[str]:
    """The split of each row. Raises SplitError if a patient is in both lists, or no image is left for training."""
    patients = [row.patient_id for row in rows]
    names = [row.path.rsplit("/", 1)[-1] for row in rows]
    if lists is not None:
        paths = [row.path for row in rows]
        splits = official_split(paths, patients, lists[0], lists[1], settings.validation_fraction, settings.seed)
    else:
        by_patient = settings.split_method == "by-patient"
        divide, of = (split_by_patient, patients) if by_patient else (split_random_images, names)
        splits = divide(of, settings.validation_fraction, settings.test_fraction, settings.seed)
    refuse_empty_training(splits, settings.split_method, len(set(patients)))
    return splits


def _refused(output: Path, rejections: Sequence[Rejection], decoded: bool) -> PreparedSummary:
    """Write rejected.csv alone."""
    _write_rejections(output, rejections)
    return PreparedSummary(output, False, False, 0, len(rejections), {"decoded": decoded})


def _counts(rows: Sequence[Row], splits: Sequence[str], findings: Sequence[str]) -> Dict[str, Any]:
    counts: Dict[str, Any] = {}
    for split in SPLITS:
        inside = [row for row, where in zip(rows, splits) if where == split]
        counts[split] = {
            "images": len(inside),
            "patients": len({row.patient_id for row in inside}),
            "findings": {name: sum(name in row.findings for row in inside) for name in findings},
        }
    return counts


def _write_arrow(
    folder: Path, rows: Sequence[Row], pixel_rows: np.ndarray, splits: Sequence[str], findings: Sequence[str]
) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features(
        {
            "file_name": datasets.Value("string"),
            "labels": datasets.Sequence(datasets.Value("float32"), length=len(findings)),
            "patient_id": datasets.Value("string"),
            "age": datasets.Value("int32"),
            "sex": datasets.Value("string"),
            "view": datasets.Value("string"),
            "follow_up": datasets.Value("int32"),
            "split": datasets.Value("string"),
            "pixel_row": datasets.Value("int64"),
        }
    )
    temporary, table = (folder.with_name(folder.name + ending) for ending in (".partial", ".rows.partial"))
    for stale in (temporary, folder):
        if stale.exists():
            shutil.rmtree(stale)
    with ArrowWriter(path=str(table), features=features) as arrow:
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(begin, begin + _ROWS_AT_ONCE)
            found = list(records(rows[some], findings))
            columns = {name: [record[name] for record in found] for name in found[0]}
            arrow.write_batch({**columns, "split": splits[some], "pixel_row": pixel_rows[some]})
        arrow.finalize()
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        datasets.Dataset.from_file(str(table)).save_to_disk(str(temporary))
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    table.unlink()
    os.replace(temporary, folder)


def _write_rejections(folder: Path, rejections: Sequence[Rejection]) -> None:
    found = sorted(rejections, key=lambda item: (item.line, item.file))
    rows = ([item.file, item.line or "", item.reason] for item in found)
    write_csv(folder / "rejected.csv", [["file", "line", "reason"], *rows])


def _identity(settings: PrepareSettings) -> str:
    """A hash of everything that determines the result, so not of the number of workers."""
    values = asdict(replace(settings, workers=0, in_place=False))
    values["csv_digest"] = _digest_of(settings.csv)
    for name in ("train_val_list", "test_list"):
        path = getattr(settings, name)
        values[name] = None if path is None else _digest_of(path)
    for name in ("csv", "output"):
        values.pop(name)
    if settings.window == "auto":  # the identity that earlier releases gave
        values.pop("window")
    values["images"] = str(settings.images.resolve())
    return hashlib.blake2b(json.dumps(values, default=str, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()
