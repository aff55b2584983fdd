"""Labels in one column a finding, each 0 or 1; a row without a 1 is "No Finding"."""

from __future__ import annotations

from pathlib import Path
from typing import Collection, Dict, List, Sequence, Set

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING, plain, spelled_as_known
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows

_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Undecided: the column still counts as a column of a finding, and the row is rejected.
_UNDECIDED = {"", "-1", "-1.0", "nan"}


class LabelColumns:
    """Translates rows of such a table to the label cell of NIH's table."""

    def __init__(self, findings: Dict[int, str]) -> None:
        self.findings = findings

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
