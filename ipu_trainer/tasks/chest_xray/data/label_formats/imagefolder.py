"""Hugging Face's imagefolder with metadata.jsonl or metadata.csv: in the folder, in each folder of a split, or above those.

    {"file_name": "00000001_000.png", "labels": [0.0, 1.0, ...]}                 numbers (written_labels.py names them)
    {"file_name": "train/a.png", "labels": ["Edema", "Mass"], "patient_id": 7}   names, also as Edema|Mass
    file_name,Edema,Mass,patient_id                                              a column of 1, 0, -1 and blank a finding

Ids of patients and studies, age, sex, view, follow_up and split are read where there are such columns. A folder named train,
validation or test (or like them) is the split of what it holds. Without patient ids, NIH's file names (00000013_005.png) say the
patient, if all names have that form.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import (
    VALUES,
    FindingColumns,
    Verdict,
    age_of,
    is_no_finding,
    sex_of,
    whole_number,
)
from ipu_trainer.tasks.chest_xray.data.label_formats.chexpert import DEVICES
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of, study_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.split_names import part_named, part_of_path
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import COLUMN_NAMES, TableFile
from ipu_trainer.tasks.chest_xray.data.label_formats.written_labels import WrittenLabels, with_healthy
from ipu_trainer.tasks.chest_xray.data.labels import plain
from ipu_trainer.tasks.chest_xray.data.text_files import open_text
from ipu_trainer.tasks.folders import is_hidden

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
# Without case, spaces and punctuation.
FIELDS = {name: tuple(map(plain, spellings)) for name, spellings in COLUMN_NAMES.items()}
_NIH_NAME = re.compile(r"(?:^|/)(?:\d{7}-)?(\d{8})_\d{3}\.[A-Za-z]+$")

Fields = Mapping[str, Any]


def find_metadata(images: Path) -> List[Path]:
    """The metadata files in a folder and below it, without hidden folders and those that `prepare` wrote."""
    found: List[Path] = []
    for folder, below, names in os.walk(images, followlinks=False):
        below[:] = sorted(name for name in below if not is_hidden(name))
        if "prepared.json" in names and Path(folder) != images:
            below[:] = []
            continue
        found += [Path(folder) / name for name in METADATA_NAMES if name in names]
    return [path for path in found if path.is_file()]  # a pipe would be waited for


def is_written_in_place(metadata: Path) -> bool:
    """Whether `prepare --in_place` may have written a metadata file: by the columns of its first row (imagefolder_metadata.py)."""
    if not metadata.name.endswith(".jsonl"):
        return False
    _, row = next(_json_rows(metadata), (0, {}))
    return set(row) - {"study_id"} == {"file_name", "labels", "patient_id", "age", "sex", "view", "follow_up"}


def read_imagefolder(tables: Sequence[Path], images: Path, choices: LabelChoices) -> Labels:
    """tables: metadata files, or one table in the form of one. File names are relative to the folder of a metadata file."""
    labels = Labels("imagefolder", tables[0], iter(()))
    labels.also += tables[1:]
    inside = [path for path in tables if path.name in METADATA_NAMES]
    labels.last_part_is_unique = not inside
    rows = MetadataRows([(path, _prefix(path, images) if path in inside else "") for path in tables])
    labels.records = records_of_rows(rows, choices, labels)
    return labels


class MetadataRows:
    """(line, {column: value}) of each row of metadata files, as often as asked for; file names are relative to the images."""

    def __init__(self, tables: Sequence[Tuple[Path, str]]) -> None:
        self._tables = tables

    def __iter__(self) -> Iterator[Tuple[int, Dict[str, Any]]]:
        for path, prefix in self._tables:
            for line, row in _json_rows(path) if path.name.endswith((".jsonl", ".json")) else _csv_rows(path):
                if prefix:
                    key = column_of("file_name", row)
                    if key is not None:
                        row[key] = f"{prefix}{row[key]}"
                yield line, row


def records_of_rows(
    rows: Any, choices: LabelChoices, labels: Labels, names: Sequence[str] = ()
) -> Iterator[LabelRecord]:
    """Records of rows that can be iterated twice: once to see what they hold, once to read it. names: those of N-hot columns."""
    form = _Form(rows, choices, labels, names)
    for line, row in rows:
        name = str(row.get(form.column.get("file_name", ""), "") or "")
        verdict = form.verdict(row)
        if not verdict.labelled:
            labels.no_label.append(name)
            continue
        values = {field: "" if row.get(key) is None else str(row[key]).strip() for field, key in form.column.items()}
        patient = values.get("patient_id", "")
        if form.patients == "file names":
            patient = _NIH_NAME.search(name).group(1)  # type: ignore[union-attr]  # all names have the form
        yield LabelRecord(
            line,
            name,
            verdict.present,
            verdict.unknown,
            patient_of(patient),
            study_of(values.get("study_id", "")),
            age_of(values.get("age", "")),
            sex_of(values.get("sex", "")),
            values.get("view", "").upper(),
            whole_number(values.get("follow_up", "")),
            part_named(values.get("split", "")) or part_of_path(name),
            error=verdict.error,
        )
    labels.notes += form.describe()


class _Form:
    """What a first look at all rows says: the columns of each field, the form of the labels, and where patients are named.

    Raises UserError if there are no file names, no labels, or labels of several forms.
    """

    def __init__(self, rows: Any, choices: LabelChoices, labels: Labels, names: Sequence[str]) -> None:
        self.column: Dict[str, str] = {}
        written = WrittenLabels(choices, labels.table)
        all_columns: Dict[str, bool] = {}  # whether a column holds 1, 0, -1 and blank alone
        some_one: Set[str] = set()
        some_patient, nih_names, count = False, True, 0
        for line, row in rows:
            count += 1
            for key, value in row.items():
                if key not in all_columns:
                    all_columns[key] = True
                    field = next((field for field in FIELDS if column_of(field, [key]) is not None), None)
                    if field is not None and field not in self.column:
                        self.column[field] = key
                if all_columns[key]:
                    number = _number(value)
                    all_columns[key] = number != "other"
                    if number == 1:
                        some_one.add(key)
            if "labels" in self.column:
                written.see(line, row.get(self.column["labels"]))
            patient = self._value("patient_id", row)
            some_patient = some_patient or (patient is not None and patient_of(str(patient)) != "")
            nih_names = nih_names and bool(_NIH_NAME.search(str(self._value("file_name", row) or "")))
        if not count:
            raise UserError(f"{labels.table} has no rows.")
        if "file_name" not in self.column:
            raise UserError(f"{labels.table} has no column file_name. Its columns: {', '.join(all_columns)}.")
        self.patients = "column" if some_patient else "file names" if nih_names else "none"
        if self.patients == "file names":
            labels.notes.append("patients: from the file names, which are NIH's (patient_followup.png)")
        labels.header = list(all_columns)
        labels.has_patients = self.patients != "none"
        self._written: Optional[WrittenLabels] = None
        self._columns: Optional[FindingColumns] = None
        if "labels" in self.column:
            self._written = written
            labels.columns, notes = written.decide(names)
            labels.notes += notes
            return
        free = [key for key in all_columns if key not in self.column.values() and plain(key)]
        found = [key for key in free if all_columns[key] and key in some_one]
        kept = choices.kept_columns(found, labels.table) if found else {}
        if not [name for name in kept if not is_no_finding(name)]:
            raise UserError(
                f"{labels.table} has neither a column labels (names of findings, or a number for each) nor a column of 1, 0, -1 "
                f"and blank for each finding. Its columns: {', '.join(all_columns)}."
            )
        self._keys = found
        self._columns = FindingColumns(dict(enumerate(found)), kept, choices, (DEVICES,))
        self._adds_healthy = not any(map(is_no_finding, found))
        labels.columns = list(kept.values())

    def _value(self, field: str, row: Fields) -> Any:
        """None where the rows have no such column; one may have a column without a name."""
        return row.get(self.column[field]) if field in self.column else None

    def describe(self) -> List[str]:
        read = self._written or self._columns
        return [] if read is None else read.describe()

    def verdict(self, row: Fields) -> Verdict:
        if self._written is not None:
            return self._written.verdict(row.get(self.column["labels"]))
        assert self._columns is not None
        cells = ["" if row.get(key) is None else str(row[key]) for key in self._keys]
        return with_healthy(self._columns.verdict(cells), self._adds_healthy)


def column_of(field: str, names: Any) -> Optional[str]:
    """The column that holds a field, the first spelling of FIELDS first; None without one."""
    by_plain = {plain(str(name)): str(name) for name in names}
    return next((by_plain[spelling] for spelling in FIELDS[field] if spelling in by_plain), None)


def _number(value: Any) -> Any:
    """1, 0, -1, None for blank, or "other"."""
    if isinstance(value, (list, dict)):
        return "other"
    return VALUES.get("" if value is None else str(value).strip().lower(), "other")


def _prefix(metadata: Path, images: Path) -> str:
    folder = os.path.relpath(metadata.parent.resolve(), images.resolve()).replace(os.sep, "/")
    return "" if folder == "." or folder.startswith("..") else f"{folder}/"


def _json_rows(path: Path) -> Iterator[Tuple[int, Dict[str, Any]]]:
    with open_text(path, "lines of JSON") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                try:
                    row = json.loads(text, object_pairs_hook=_columns_once)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number} is no JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: {text.strip()[:60]!r} is no JSON object of columns.")
                yield number, row


def _columns_once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """The object of a JSON line. Raises ValueError where one name has two values."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        for name, value in pairs:
            if columns[name] != value:
                raise ValueError(f"two values of {name!r}: {value!r} and {columns[name]!r}")
    return columns


def _csv_rows(path: Path) -> Iterator[Tuple[int, Dict[str, Any]]]:
    table = TableFile(path)
    for line, cells in table.rows():
        yield line, dict(zip(table.header, cells))
