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

import contextlib
import errno
import hashlib
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.atomic import remove_leftovers, write_csv, write_json
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data import image_decoding as image_files
from ipu_trainer.tasks.chest_xray.data.decode_to_store import decode_to_store
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding
from ipu_trainer.tasks.chest_xray.data.image_folder import ImageFolder
from ipu_trainer.tasks.chest_xray.data.imagefolder_metadata import (
    read_records,
    records,
    refuse_foreign_metadata,
    write_beside_images,
    write_records,
)
from ipu_trainer.tasks.chest_xray.data.integrity.digests import combined, digest_of_files, with_digest
from ipu_trainer.tasks.chest_xray.data.integrity.prepared_folder import (
    FORMAT_VERSION,
    MANIFEST,
    METADATA,
    REJECTED,
    REJECTED_HEADER,
    ROWS,
    arrow_files,
    check_rows,
    check_store,
    keep_foreign_files,
    pixel_check,
    read_manifest,
    read_rows,
)
from ipu_trainer.tasks.chest_xray.data.integrity.sources import sources_changed, sources_of
from ipu_trainer.tasks.chest_xray.data.label_formats.hugging_face import ImageDataset, read_dataset
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import label_files, read_labels
from ipu_trainer.tasks.chest_xray.data.label_table import LabelTable, Rejection, Row, match_images
from ipu_trainer.tasks.chest_xray.data.pixel_store import (
    STORE_FILE,
    StoreWriter,
    discard_journal,
)
from ipu_trainer.tasks.chest_xray.data.pixels import dicom
from ipu_trainer.tasks.chest_xray.data.prepare_settings import PrepareSettings, identity_of
from ipu_trainer.tasks.chest_xray.data.prepared_summary import PreparedSummary, about_labels, counts_of
from ipu_trainer.tasks.chest_xray.data.split_choice import choose_split
from ipu_trainer.tasks.chest_xray.data.splits import (
    PATIENTS_UNKNOWN,
    listed_rows,
    read_split_list,
    refuse_empty_training,
    shared_patients,
)
from ipu_trainer.tasks.output_guard import PREPARED, check_output, claim

__all__ = ["FORMAT_VERSION", "MANIFEST", "PrepareSettings", "PreparedSummary", "prepare"]

DATASET_IMAGES = "images.partial"  # of a Hugging Face data set, until they are decoded
_ROWS_AT_ONCE = 1000  # of the metadata: a table of all rows takes 0.2 GB for the whole of ChestX-ray14


def prepare(settings: PrepareSettings, progress: bool = True) -> PreparedSummary:
    """Prepare a data set. Raises UserError for settings or tables that cannot work; bad rows and files are listed."""
    with _naming_a_full_disk(settings.output):
        return _prepare(settings, progress)


def _prepare(settings: PrepareSettings, progress: bool) -> PreparedSummary:
    if not (settings.output / MANIFEST).is_file():
        check_output(settings.output, PREPARED)
    dataset = None if settings.dataset is None else ImageDataset(settings.dataset)
    tables: Tuple[Path, ...] = ()
    if settings.csv is None and settings.images is not None:
        tables = label_files(settings.images, settings.format)
    labels, images = _labels(settings, dataset, tables)
    read = list(dict.fromkeys([*tables, *labels.also]))
    _keep_files_of_others(settings, [*read, *([] if settings.csv is None else [settings.csv])])
    identity = identity_of(settings, read, None if dataset is None else dataset.identity())
    manifest_path = settings.output / MANIFEST
    if manifest_path.is_file():
        manifest = read_manifest(settings.output)
        if manifest.get("identity") != identity:
            raise UserError(
                f"{settings.output} was prepared with other settings or another CSV. Give another --output, or remove it."
            )
        _check_whole(settings, manifest)
        discard_journal(settings.output / STORE_FILE)  # of a run that ended between its manifest and here
        if settings.in_place and settings.images is not None:
            write_beside_images(settings.images, read_records(settings.output / METADATA))
        return PreparedSummary(settings.output, True, True, manifest["num_images"], manifest["rejected"], manifest)

    for stale in keep_foreign_files(settings.output):
        _remove(stale)
    remove_leftovers(settings.output)
    if dataset is not None:
        claim(settings.output, PREPARED)
        dataset.write_images(images)
    found = match_images(labels, ImageFolder(images), settings.only_present)
    rejections = list(found.rejections)
    rows = list(found.rows)
    lists = None
    if settings.split in (None, "official") and settings.train_val_list is not None and settings.test_list is not None:
        lists = read_split_list(settings.train_val_list), read_split_list(settings.test_list)
        rows, strays = listed_rows(rows, *lists)
        rejections += strays
    if not rows and not rejections:
        raise UserError(f"{found.labels.table} and {images} have no image in common. Are they one data set?")
    if rejections and not settings.skip_bad:  # before anything is decoded
        return _refused(settings.output, rejections, found, decoded=False)
    fractions = settings.validation_fraction, settings.test_fraction
    choice = choose_split(rows, settings.split, lists, *fractions, settings.seed)
    splits = choice.splits

    dicom.check_paths((row.path for row in rows), settings.in_place)
    if settings.in_place:
        refuse_foreign_metadata(images, (row.path for row in rows))
    decoding = Decoding(settings.size, settings.resample, window=settings.window)
    plan = hashlib.blake2b(digest_size=16)
    window = () if settings.window == "auto" else (settings.window,)  # a plan of an earlier release is resumed
    for part in (settings.size, settings.resample, *window, images.resolve(), *(row.path for row in rows)):
        plan.update(os.fsencode(f"{part}\0"))
    claim(settings.output, PREPARED)
    writer = StoreWriter(
        settings.output / STORE_FILE, len(rows), settings.size, settings.resample, image_files.DECODER, plan.hexdigest()
    )
    paths = [row.path for row in rows]
    failures, scale, wide = decode_to_store(writer, images, paths, decoding, settings.workers, progress)
    rejections += [Rejection(rows[position].path, rows[position].line, reason) for position, reason in failures.items()]
    if rejections and not settings.skip_bad:
        writer.discard()
        return _refused(settings.output, rejections, found, decoded=True)

    pixel_rows = np.delete(np.arange(len(rows)), sorted(failures))
    splits = [splits[position] for position in pixel_rows]
    rows = [rows[position] for position in pixel_rows]
    try:
        refuse_empty_training(splits, choice.method, len({row.group for row in rows}))
    except ValueError:
        writer.discard()
        raise
    findings = sorted({name for row in rows for name in row.findings})
    if not findings:
        writer.discard()
        raise UserError(f"{found.labels.table}: no finding is ever present, so there is nothing to learn.")
    fingerprint = hashlib.blake2b(digest_size=16)
    for position, row, split in zip(pixel_rows.tolist(), rows, splits):
        unknown = "".join(f"?{name}" for name in row.unknown)
        fingerprint.update(
            f"{row.path}\0{'|'.join(row.findings)}{unknown}\0{split}\0".encode() + writer.digest(position)
        )
    source_hash = fingerprint.hexdigest()

    _write_rejections(settings.output, rejections)
    _write_arrow(settings.output / ROWS, rows, pixel_rows, splits, findings)
    write_records(settings.output / METADATA, records(rows, findings))
    digests = {
        "pixels": combined(map(writer.pixel_digest, pixel_rows.tolist())),
        ROWS: digest_of_files(arrow_files(settings.output)),
        METADATA: digest_of_files([settings.output / METADATA]),
    }
    if settings.in_place:
        write_beside_images(images, records(rows, findings))
    writer.finish(source_hash, digests["pixels"])
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
            "method": choice.method,
            "validation_fraction": settings.validation_fraction,
            "test_fraction": None if choice.method == "official" else settings.test_fraction,
            "seed": settings.seed,
            "images_of_patients_in_another_split": None
            if choice.method in PATIENTS_UNKNOWN
            else shared_patients(splits, [row.group for row in rows]),
        },
        "counts": counts_of(rows, splits, findings),
        "rejected": len(rejections),
        "rows_without_image": found.num_rows_without_image,
        "unknown_ages": found.num_unknown_ages,
        "repeated_rows": found.num_repeated_rows,
        "rows_without_label": found.num_without_label,
        "labels": about_labels(found, findings, choice.notes),
        "wide_images": wide,
        "source": {"csv": str(found.labels.table), "images": str(settings.images), "dataset": settings.dataset},
        "digests": digests,
    }
    if dataset is None:
        sources = sources_of(images, [row.path for row in rows], map(writer.digest, pixel_rows.tolist()))
        manifest["sources"] = sources
    manifest = with_digest(manifest)
    write_json(manifest_path, manifest)
    writer.discard()
    shutil.rmtree(settings.output / DATASET_IMAGES, ignore_errors=True)
    return PreparedSummary(settings.output, True, False, len(rows), len(rejections), manifest)


def _keep_files_of_others(settings: PrepareSettings, read: Sequence[Path]) -> None:
    """Raise UserError where a file that labels are read from, or a folder of the user's, would be written over."""
    target = settings.output / METADATA
    for path in read:
        if path.resolve() == target.resolve():
            raise UserError(
                f"--output {settings.output}: {path}, from which the labels are read, would be written over."
            )
        if settings.in_place and path.name == METADATA:
            raise UserError(f"--in_place would write over {path}, from which the labels are read. Leave it out.")


def _check_whole(settings: PrepareSettings, manifest: Dict[str, Any]) -> None:
    """Raises UserError where a finished folder is damaged, or its images are others now."""
    output = settings.output
    check_store(output, manifest)
    rows = read_rows(check_rows(output, manifest))
    known = manifest.get("digests", {}).get(METADATA)
    if not (output / METADATA).is_file() or (known and digest_of_files([output / METADATA]) != known):
        raise UserError(f"{output / METADATA} is missing or damaged. Remove {output}, and prepare the data again.")
    pixel_check(output, manifest, rows.column("pixel_row").to_numpy()).wait()
    names = rows.column("file_name").to_pylist()
    sources = manifest.get("sources")
    if settings.images is not None and sources and sources_changed(settings.images, names, sources):
        raise UserError(
            f"{output} was prepared from other contents of {settings.images}: images changed or are missing since. Remove "
            f"{output}, and prepare the data again, or give another --output."
        )


@contextlib.contextmanager
def _naming_a_full_disk(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or isinstance(error, UserError):
            raise
        raise UserError(
            f"{output}: no space left to write ({os.strerror(error.errno)}). Free some, and give the same command "
            "again: it goes on."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _labels(settings: PrepareSettings, dataset: Optional[ImageDataset], tables: Sequence[Path]) -> Tuple[Labels, Path]:
    """(labels, whose records are not read yet; the folder of their images)"""
    if dataset is not None:
        return read_dataset(dataset, settings.choices, Path(dataset.name)), settings.output / DATASET_IMAGES
    assert settings.images is not None
    return read_labels(settings.csv, settings.images, settings.choices, settings.format, tables), settings.images


def _refused(output: Path, rejections: Sequence[Rejection], found: LabelTable, decoded: bool) -> PreparedSummary:
    """Write rejected.csv alone."""
    claim(output, PREPARED)
    shutil.rmtree(output / DATASET_IMAGES, ignore_errors=True)
    _write_rejections(output, rejections)
    about = {"decoded": decoded, "format": found.labels.title}
    return PreparedSummary(output, False, False, 0, len(rejections), about)


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
            **({"study_id": datasets.Value("string")} if any(row.study_id for row in rows) else {}),
            "age": datasets.Value("int32"),
            "sex": datasets.Value("string"),
            "view": datasets.Value("string"),
            "follow_up": datasets.Value("int32"),
            "split": datasets.Value("string"),
            "pixel_row": datasets.Value("int64"),
        }
    )
    temporary, table = (folder.with_name(folder.name + ending) for ending in (".partial", ".rows.partial"))
    if temporary.exists():
        shutil.rmtree(temporary)
    with ArrowWriter(path=str(table), features=features) as arrow:
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(begin, begin + _ROWS_AT_ONCE)
            found = list(records(rows[some], findings))
            columns = {name: [record.get(name) for record in found] for name in features if name in found[0]}
            columns["labels"] = [
                [math.nan if value is None else value for value in record["labels"]] for record in found
            ]
            columns["patient_id"] = [row.group for row in rows[some]]
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
    write_csv(folder / REJECTED, [REJECTED_HEADER, *rows])
