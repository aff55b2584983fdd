"""The label table: the images of a data set with their labels, matched with the image files.

A reader of label_formats turns files into records; here each record meets its image. Images are in one folder or below it, as
data sets ship them. Every row or file that cannot be used becomes a Rejection with its place and reason. Only hidden files are
ignored silently.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, List, Optional, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.image_folder import ImageFolder
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import read_labels
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS


@dataclass(frozen=True)
class Row:
    """One usable image. path is relative to the image folder.

    findings are present, unknown ones uncertain or not labelled; the others are absent. patient_id, study_id and split are empty
    where the data set has none.
    """

    __slots__ = (
        "age",
        "file_name",
        "findings",
        "follow_up",
        "line",
        "path",
        "patient_id",
        "sex",
        "split",
        "study_id",
        "unknown",
        "view",
    )

    file_name: str
    path: str
    findings: Tuple[str, ...]
    unknown: Tuple[str, ...]
    patient_id: str
    study_id: str
    age: Optional[int]
    sex: str
    view: str
    follow_up: Optional[int]
    split: str
    line: int

    @property
    def group(self) -> str:
        """What must not be in two splits: the patient, else the study, else the image."""
        return self.patient_id or (f"study:{self.study_id}" if self.study_id else f"image:{self.path}")


@dataclass(frozen=True)
class Rejection:
    """Unusable input: the file, its line in the table (0 for an image without a row) and the reason."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class LabelTable:
    """labels: what the reader says of the data set. num_without_label: rows that label nothing, which are left out."""

    rows: Tuple[Row, ...]
    rejections: Tuple[Rejection, ...]
    num_rows_without_image: int
    num_unknown_ages: int
    num_repeated_rows: int
    num_without_label: int
    labels: Labels


def read_label_table(
    csv_path: Path, images: Path, known: Collection[str] = NIH_FINDINGS, only_present: bool = False
) -> LabelTable:
    """Match the rows of csv_path, whatever its format, with the files below images. An empty known accepts every finding.

    Raises UserError if the file is no table with image, label and patient columns.
    """
    return match_images(read_labels(csv_path, images, LabelChoices(tuple(known))), ImageFolder(images), only_present)


def match_images(labels: Labels, images: ImageFolder, only_present: bool = False) -> LabelTable:
    """Match records with image files. Rows are sorted by path.

    only_present: skip and count rows without an image file (a partial download). Exact repetitions of a row are skipped and
    counted as well, as are rows without any label.
    """
    rows: List[Row] = []
    rejections: List[Rejection] = []
    first: Dict[str, Tuple[int, object]] = {}  # of each image: the line that came first, and what it says
    absent = unknown_ages = repeated = 0
    for record in labels.records:
        try:
            located = images.locate(record.image, labels.last_part_is_unique)
            if located is None:
                if only_present:
                    absent += 1
                    continue
                raise UserError("row without image: no such file below the image folder")
            said = (record.written or (record.findings, record.unknown), record.patient_id)
            line, before = first.setdefault(located, (record.line, said))
            if before is not said:
                if before == said:
                    repeated += 1
                    continue
                raise UserError(f"duplicate row: line {line} describes this image with other labels or another patient")
            if record.error:
                raise UserError(record.error)
            if labels.has_patients and not record.patient_id:
                raise UserError("no patient id: splits are made by patient")
        except ValueError as error:
            rejections.append(Rejection(record.image, record.line, str(error)))
            continue
        unknown_ages += record.age is None
        rows.append(_row(record, located))
    rejections += [Rejection(path, 0, reason) for path, reason in sorted(images.unusable.items())]
    without_label = sum(1 for name in labels.no_label if _claim(name, labels, images, first))
    rejections += [
        Rejection(path, 0, f"image without row in {labels.table.name}")
        for path in sorted(images.files)
        if path not in first
    ]
    rows.sort(key=lambda row: row.path)
    return LabelTable(tuple(rows), tuple(rejections), absent, unknown_ages, repeated, without_label, labels)


def _row(record: LabelRecord, path: str) -> Row:
    return Row(
        file_name=path if path == record.image else record.image,
        path=path,
        findings=record.findings,
        unknown=record.unknown,
        patient_id=sys.intern(record.patient_id),
        study_id=sys.intern(record.study_id),
        age=record.age,
        sex=record.sex,
        view=sys.intern(record.view),
        follow_up=record.follow_up,
        split=record.split,
        line=record.line,
    )


def _claim(name: str, labels: Labels, images: ImageFolder, first: Dict[str, Tuple[int, object]]) -> bool:
    """Whether the image of a row without any label is there; it has a row then, and is no stray file."""
    try:
        path = images.locate(name, labels.last_part_is_unique)
    except UserError:
        return False
    if path is None or path in first:
        return False
    first[path] = (0, None)
    return True
