"""NIH ChestX-ray14 and tables like it: a row an image, with one column of labels or one column of 0 and 1 for each finding.

    Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,...     2017
    Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,...        2020
    Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,...   with ages such as 060Y: Kaggle's sample_labels.csv
    Image,Edema,Mass,...,PatientId                                      one column a finding

Names of columns match in any case, with spaces or underscores. Every image has all labels: there is nothing uncertain, and a cell
other than 0 and 1 rejects its row.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import age_of, whole_number
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import COLUMN_NAMES, TableFile
from ipu_trainer.tasks.chest_xray.data.labels import (
    NIH_FINDINGS,
    NO_FINDING,
    LabelError,
    parse_findings,
    plain,
    spelled_as_known,
)
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows

_COLUMNS = {
    name: COLUMN_NAMES[name] for name in ("file_name", "labels", "patient_id", "age", "sex", "view", "follow_up")
}
_REQUIRED = ("file_name", "patient_id")


def is_nih(table: TableFile) -> bool:
    return table.has("Image Index", "Finding Labels")


def read_nih(table: TableFile, choices: LabelChoices) -> Labels:
    """Raises UserError if the file is no table with image, label and patient columns."""
    known = NIH_FINDINGS if choices.findings is None else choices.findings
    columns = _match_columns(table)
    by_column = (
        None if "labels" in columns else LabelColumns.find(table.path, table.header, set(columns.values()), known)
    )
    title = (
        "NIH ChestX-ray14"
        if is_nih(table)
        else "a column of labels"
        if by_column is None
        else "a column of 0 and 1 a finding"
    )
    labels = Labels(
        title, table.path, iter(()), columns=[] if by_column is None else sorted(by_column.findings.values())
    )
    labels.records = _records(table, columns, by_column, known)
    return labels


def file_name_column(path: Path, header: Sequence[str]) -> int:
    """The position of the column of file names. Raises UserError where there is none."""
    present = {plain(name): position for position, name in reversed(list(enumerate(header)))}
    for spelling in _COLUMNS["file_name"]:
        if plain(spelling) in present:
            return present[plain(spelling)]
    raise UserError(
        f"{path} has no column of file names ({', '.join(_COLUMNS['file_name'])}). Its columns: {', '.join(header)}."
    )


def _records(
    table: TableFile, columns: Dict[str, int], by_column: Optional[LabelColumns], known: Collection[str]
) -> Iterator[LabelRecord]:
    shared: Dict[Tuple[str, ...], Tuple[str, ...]] = {}  # one tuple for all rows with the same findings
    for line, cells in table.rows():
        record = {name: cells[position] for name, position in columns.items()}
        error = ""
        if by_column is not None:
            record["labels"], error = by_column.read(cells)
        written = "|".join(sorted(plain(name) for name in record["labels"].split("|")))
        findings: Tuple[str, ...] = ()
        if not error:
            try:
                findings = parse_findings(
                    record["labels"], (*known, NO_FINDING) if by_column is not None and known else known
                )
            except LabelError as reason:
                error = str(reason)
        yield LabelRecord(
            line,
            record["file_name"].strip(),
            shared.setdefault(findings, findings),
            (),
            sys.intern(patient_of(record["patient_id"])),
            "",
            age_of(record.get("age", "")),
            record.get("sex", "").strip().upper()[:1],
            sys.intern(record.get("view", "").strip().upper()),
            whole_number(record.get("follow_up", "")),
            written=written,
            error=error,
        )


def _match_columns(table: TableFile) -> Dict[str, int]:
    """Positions of the columns by the names in _COLUMNS."""
    found = {name: table.position(*spellings) for name, spellings in _COLUMNS.items()}
    columns = {name: position for name, position in found.items() if position is not None}
    missing = [f"{name} ({' / '.join(_COLUMNS[name][:2])})" for name in _REQUIRED if name not in columns]
    if missing:
        without = "" if missing[0].startswith("file_name") else " For a table without patients: --format imagefolder."
        raise UserError(
            f"{table.path} has no column for {', '.join(missing)}. Its columns: {', '.join(table.header)}.{without}"
        )
    return columns


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

    def read(self, cells: Sequence[str]) -> Tuple[str, str]:
        """("Edema|Mass", ""), or ("", the reason) for a row with cells other than 0 and 1."""
        present: List[str] = []
        absent: List[str] = []
        for column, name in self.findings.items():
            value = _VALUES.get(cells[column].strip().lower())
            if value is None:
                reason = f"{cells[column]!r} in the column {name}: only 0 and 1 are read. Decide for one of them"
                return "", f"{reason}, or keep it as unknown: --format imagefolder"
            (present if value else absent).append(name)
        if not present and NO_FINDING in absent:
            return "", f"no finding is 1, and {NO_FINDING!r} is 0 too"
        return "|".join(present or [NO_FINDING]), ""


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
