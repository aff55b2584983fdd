"""The label table: reading its rows, whatever their column names, and matching them with the image files.

NIH's `Data_Entry_2017.csv` has "Patient Gender", the 2020 edition "Patient Sex"; other tables use snake case, or a column of 0
and 1 for each finding (LabelColumns). Images are in one folder or in `images_001/images ... images_012/images`. Every row
or file that cannot be used becomes a Rejection with its place and reason. Only hidden files are ignored silently.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import (
    NIH_FINDINGS,
    NO_FINDING,
    LabelError,
    parse_findings,
    plain,
    spelled_as_known,
)
from ipu_trainer.tasks.chest_xray.data.pixels import dicom
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows
from ipu_trainer.tasks.folders import is_hidden

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", *dicom.SUFFIXES})
# An age above this is a typing error; the 2017 edition has ages up to 414.
OLDEST_YEARS = 120

_COLUMNS: Dict[str, Tuple[str, ...]] = {
    "file_name": ("Image Index", "file_name", "Image", "Image Name", "Image File", "Image ID", "Image Path", "Path"),
    "labels": ("Finding Labels", "labels", "Finding Label", "label", "findings"),
    "patient_id": ("Patient ID", "patient_id", "Patient", "Subject ID"),
    "age": ("Patient Age", "age", "Age Years"),
    "sex": ("Patient Sex", "Patient Gender", "sex", "gender"),
    "view": ("View Position", "view"),
    "follow_up": ("Follow-up #", "follow_up"),
}
_REQUIRED = ("file_name", "patient_id")
_PLAIN_COLUMNS = {name: tuple(plain(spelling) for spelling in spellings) for name, spellings in _COLUMNS.items()}


@dataclass(frozen=True)
class Row:
    """One usable line of the CSV. path is relative to the image folder."""

    __slots__ = ("age", "file_name", "findings", "follow_up", "line", "path", "patient_id", "sex", "view")

    file_name: str
    path: str
    findings: Tuple[str, ...]
    patient_id: str
    age: Optional[int]
    sex: str
    view: str
    follow_up: Optional[int]
    line: int


@dataclass(frozen=True)
class Rejection:
    """Unusable input: the file, the line in the CSV (0 for an image without a row) and the reason."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class LabelTable:
    rows: Tuple[Row, ...]
    rejections: Tuple[Rejection, ...]
    num_rows_without_image: int
    num_unknown_ages: int
    num_repeated_rows: int = 0


def read_label_table(
    csv_path: Path, images: Path, known: Collection[str] = NIH_FINDINGS, only_present: bool = False
) -> LabelTable:
    """Match the rows of csv_path with the files below images. Rows are sorted by path.

    only_present: skip and count rows without an image file (a partial download). Exact repetitions of a row are skipped and
    counted as well.
    Raises UserError if the file is no table with image, label and patient columns.
    """
    root = images.resolve()
    files = _list_images(images)
    by_name: Dict[str, List[str]] = {}  # of files in subfolders
    for path in files:
        if "/" in path:
            by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)

    rows: List[Row] = []
    rejections: List[Rejection] = []
    first: Dict[str, Tuple[int, str, str]] = {}  # of each image: line, labels and patient of the row that came first
    shared: Dict[Tuple[str, ...], Tuple[str, ...]] = {}  # one tuple for all rows with the same findings
    absent = unknown_ages = repeated = 0
    for line, record in _read_records(csv_path, known):
        name = record["file_name"].strip()
        try:
            located = _locate(name, root, files, by_name)
            if located is None:
                if only_present:
                    absent += 1
                    continue
                raise UserError("row without image: no such file below the image folder")
            patient = _patient(record["patient_id"])
            labels = "|".join(sorted(plain(name) for name in record["labels"].split("|")))
            before, *values = first.setdefault(located, (line, labels, patient))
            if before != line and values == [labels, patient]:
                repeated += 1
                continue
            if before != line:
                raise UserError(
                    f"duplicate row: line {before} describes this image with other labels or another patient"
                )
            if record.get("unreadable"):
                raise LabelError(record["unreadable"])
            by_column = "unreadable" in record and known
            findings = parse_findings(record["labels"], (*known, NO_FINDING) if by_column else known)
            if not patient:
                raise UserError("no patient id: splits are made by patient")
        except (ValueError, LabelError) as error:
            rejections.append(Rejection(name, line, str(error)))
            continue
        age = _age(record.get("age", ""))
        unknown_ages += age is None
        assert located is not None
        rows.append(
            Row(
                file_name=located if name == located else name,
                path=located,
                findings=shared.setdefault(findings, findings),
                patient_id=sys.intern(patient),
                age=age,
                sex=record.get("sex", "").strip().upper()[:1],
                view=sys.intern(record.get("view", "").strip().upper()),
                follow_up=_whole(record.get("follow_up", "")),
                line=line,
            )
        )
    rejections += [
        Rejection(path, 0, f"image without row in {csv_path.name}") for path in sorted(files) if path not in first
    ]
    rows.sort(key=lambda row: row.path)
    return LabelTable(tuple(rows), tuple(rejections), absent, unknown_ages, repeated)


def _read_records(csv_path: Path, known: Collection[str]) -> Iterator[Tuple[int, Dict[str, str]]]:
    """(line number, cells by the names in _COLUMNS) of one row at a time, because a table may have a hundred thousand."""
    with open_text(csv_path) as text:
        reader = table_rows(text)
        header = next(reader, None)
        if not header:
            raise UserError(f"{csv_path} is empty. Give NIH's Data_Entry_2017_v2020.csv or a table like it.")
        columns = _match_columns(csv_path, header)
        labels = None if "labels" in columns else LabelColumns.find(csv_path, header, set(columns.values()), known)
        for cells in reader:
            if cells and any(cell.strip() for cell in cells):
                cells += [""] * (len(header) - len(cells))
                record = {name: cells[position] for name, position in columns.items()}
                yield reader.line_num, record if labels is None else {**record, **labels.read(cells)}


def _match_columns(csv_path: Path, header: Sequence[str]) -> Dict[str, int]:
    """Positions of the columns by the names in _COLUMNS; the first of two columns of one name counts."""
    present = {plain(name): position for position, name in reversed(list(enumerate(header)))}
    columns = {}
    for name, spellings in _PLAIN_COLUMNS.items():
        spelling = next((spelling for spelling in spellings if spelling in present), None)
        if spelling is not None:
            columns[name] = present[spelling]
    missing = [f"{name} ({' / '.join(_COLUMNS[name][:2])})" for name in _REQUIRED if name not in columns]
    if missing:
        raise UserError(f"{csv_path} has no column for {', '.join(missing)}. Its columns: {', '.join(header)}.")
    return columns


def file_name_column(path: Path, header: Sequence[str]) -> int:
    """The position of the column of file names. Raises UserError where there is none."""
    present = {plain(name): position for position, name in reversed(list(enumerate(header)))}
    for spelling in _PLAIN_COLUMNS["file_name"]:
        if spelling in present:
            return present[spelling]
    raise UserError(
        f"{path} has no column of file names ({', '.join(_COLUMNS['file_name'])}). Its columns: {', '.join(header)}."
    )


def _list_images(images: Path) -> Set[str]:
    """Paths of the image files, without hidden ones (.ipynb_checkpoints, __MACOSX, ._name).

    Names without a suffix, or that end with digits as a UID does, are image files if they are DICOM by their content.
    """
    found = set()
    for folder, below, names in os.walk(images, followlinks=False):
        below[:] = [name for name in below if not is_hidden(name)]
        prefix = os.path.relpath(folder, images)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            unnamed = (not suffix or suffix[1:].isdigit()) and dicom.is_dicom_file(Path(folder) / name)
            if (suffix in IMAGE_SUFFIXES or unnamed) and not is_hidden(name):
                found.add(name if prefix == "." else f"{prefix}/{name}".replace(os.sep, "/"))
    return found


def _locate(name: str, root: Path, files: Set[str], by_name: Dict[str, List[str]]) -> Optional[str]:
    """The path of a row's image relative to root. Raises UserError if the name leaves the folder or is ambiguous."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise UserError("path leaves the image folder: use a file name below it")
    path = "/".join(part for part in parts if part not in ("", "."))
    if path not in files:
        matches = by_name.get(parts[-1], []) + [parts[-1]] * (parts[-1] in files)
        if len(matches) > 1:
            raise UserError(f"ambiguous: {len(matches)} files have this name ({', '.join(sorted(matches)[:3])})")
        if not matches:
            return None
        path = matches[0]
    resolved = (root / path).resolve()
    if root not in resolved.parents:
        raise UserError("path leaves the image folder through a symbolic link")
    return path


def _age(text: str) -> Optional[int]:
    """Whole years, rounded down, of "57", "057Y", "18M" (months), "30D" (days); None if malformed or above OLDEST_YEARS."""
    text = text.strip().upper()
    unit = text[-1:] if text[-1:] in ("Y", "M", "D") else ""
    value = _whole(text[: len(text) - len(unit)])
    if value is None:
        return None
    years = value // {"": 1, "Y": 1, "M": 12, "D": 365}[unit]
    return years if 0 <= years <= OLDEST_YEARS else None


def _whole(text: str) -> Optional[int]:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def _patient(text: str) -> str:
    """ "00000013", "13" and "13.0" (written by pandas) are the same patient."""
    text = text.strip()
    number = re.fullmatch(r"([0-9]+)(\.0*)?", text)
    return str(int(number.group(1))) if number else text


_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Undecided: the column still counts as a column of a finding, and the row is rejected.
_UNDECIDED = {"", "-1", "-1.0", "nan"}


@dataclass(frozen=True)
class LabelColumns:
    """Translates rows with 0 or 1 in a column of each finding to NIH's label cell; a row without a 1 is "No Finding"."""

    findings: Dict[int, str]

    @classmethod
    def find(cls, csv_path: Path, header: Sequence[str], taken: Set[int], known: Collection[str]) -> LabelColumns:
        """The columns of `known` findings; if `known` is empty, every column that holds 0 and 1 alone.

        Raises UserError if there is none, if two columns are the same finding, or if other columns hold 0 and 1: an image
        with only such a finding would count as "No Finding".
        """
        free = [column for column, name in enumerate(header) if column not in taken and plain(name)]
        named = {column: spelled_as_known(header[column].strip(), known) for column in free}
        findings = {column: name for column, name in named.items() if name is not None}
        others = [column for column in _binary_columns(csv_path, free) if column not in findings]
        if not known:
            findings = {column: header[column].strip() for column in others}
        elif findings and others:
            raise UserError(
                f"{csv_path}: the columns {', '.join(header[column] for column in others)} hold 0 and 1, but are no findings that "
                "are asked for. Name all findings with --findings A,B,... (or any), or remove these columns."
            )
        if not findings or set(findings.values()) == {NO_FINDING}:
            such_as = f" ({', '.join(list(known)[:3])} ...)" if known else ""
            raise UserError(
                f"{csv_path} has neither a column of labels (Finding Labels / labels, as Edema|Mass) nor one column of 0 and 1 for "
                f"each finding{such_as}. Its columns: {', '.join(header)}."
            )
        if len(set(findings.values())) < len(findings):
            raise UserError(f"{csv_path} has two columns for one finding. Its columns: {', '.join(header)}.")
        return cls(findings)

    def read(self, cells: Sequence[str]) -> Dict[str, str]:
        """{"labels": "Edema|Mass", "unreadable": ""}; "unreadable" is the reason for a row with cells other than 0 and 1."""
        present: List[str] = []
        absent: List[str] = []
        for column, name in self.findings.items():
            value = _VALUES.get(cells[column].strip().lower())
            if value is None:
                reason = f"{cells[column]!r} in the column {name}: only 0 and 1 are read. Decide for one of them"
                return {"labels": "", "unreadable": reason}
            (present if value else absent).append(name)
        if not present and NO_FINDING in absent:
            return {"labels": "", "unreadable": f"no finding is 1, and {NO_FINDING!r} is 0 too"}
        return {"labels": "|".join(present or [NO_FINDING]), "unreadable": ""}


def _binary_columns(csv_path: Path, columns: Sequence[int]) -> List[int]:
    """The columns whose decided cells are all 0 or 1, with at least one 1."""
    only, some = set(columns), set()
    with open_text(csv_path) as text:
        rows = table_rows(text)
        next(rows, None)
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            for column in [column for column in only if column < len(cells)]:
                text_of_cell = cells[column].strip().lower()
                value = _VALUES.get(text_of_cell)
                if value is None and text_of_cell not in _UNDECIDED:
                    only.discard(column)
                elif value:
                    some.add(column)
    return [column for column in columns if column in only & some]
