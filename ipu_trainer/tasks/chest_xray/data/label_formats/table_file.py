"""One CSV of a data set: its header, the positions of columns by name, and its rows with their line numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import plain
from ipu_trainer.tasks.chest_xray.data.text_files import open_text, table_rows
from ipu_trainer.tasks.folders import is_hidden

# A table, plain or packed, by what its name ends with.
ENDINGS = (".csv", ".csv.gz", ".csv.zip")
# What a column may be called, in any case, with spaces or underscores; the first name that is there counts.
COLUMN_NAMES: Dict[str, Tuple[str, ...]] = {
    "file_name": (
        "Image Index", "file_name", "Image", "Image Name", "Image File", "Image ID", "Image Path", "Path", "File Path",
    ),
    "labels": ("Finding Labels", "labels", "Finding Label", "label", "findings"),
    "patient_id": ("Patient ID", "Patient", "Subject ID"),
    "study_id": ("Study ID", "Study"),
    "age": ("Patient Age", "age", "Age Years"),
    "sex": ("Patient Sex", "Patient Gender", "sex", "gender"),
    "view": ("View Position", "view"),
    "follow_up": ("Follow-up #", "follow_up"),
    "split": ("split",),
}  # fmt: skip


def is_table(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and not is_hidden(path.name) and path.is_file()


class TableFile:
    """header, and columns: positions by name without case, spaces and punctuation.

    Two columns of one name are read as one while they agree; rows() raises UserError for the first row where they do not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_text(path) as text:
            self.header: List[str] = next(table_rows(text), [])
        if not self.header:
            raise UserError(f"{path} is empty. Give NIH's Data_Entry_2017_v2020.csv or a table like it.")
        self.columns: Dict[str, int] = {plain(name): at for at, name in reversed(list(enumerate(self.header)))}
        first = ((self.columns[plain(name)], at) for at, name in enumerate(self.header) if plain(name))
        self._repeated = [(one, other) for one, other in first if one != other]

    def has(self, *names: str) -> bool:
        return all(plain(name) in self.columns for name in names)

    def position(self, *names: str) -> Optional[int]:
        """The column with the first of these names that is there."""
        return next((self.columns[plain(name)] for name in names if plain(name) in self.columns), None)

    def needed(self, *names: str) -> int:
        """As position. Raises UserError if there is none."""
        found = self.position(*names)
        if found is None:
            raise UserError(f"{self.path} has no column {' / '.join(names)}. Its columns: {', '.join(self.header)}.")
        return found

    def named(self, names: Sequence[str]) -> Dict[str, int]:
        """{name: position} of the names that are columns."""
        return {name: self.columns[plain(name)] for name in names if plain(name) in self.columns}

    def rows(self) -> Iterator[Tuple[int, List[str]]]:
        """(line, cells) of each row that is not empty, with as many cells as the header at least."""
        width = len(self.header)
        with open_text(self.path) as text:
            reader = table_rows(text)
            next(reader, None)
            for cells in reader:
                if any(cells) and any(cell.strip() for cell in cells):
                    cells = cells if len(cells) >= width else cells + [""] * (width - len(cells))
                    for one, other in self._repeated:
                        if cells[one].strip() != cells[other].strip():
                            raise UserError(
                                f"{self.path}, line {reader.line_num}: two columns are called {self.header[one]!r}, and one says "
                                f"{cells[one]!r}, the other {cells[other]!r}. Remove or rename one."
                            )
                    yield reader.line_num, cells


def cell(cells: Sequence[str], position: Optional[int]) -> str:
    """The cell without spaces around it; "" where there is no such column."""
    return "" if position is None else cells[position].strip()


def beside(table: Path, name: str) -> Optional[Path]:
    """The table `name` (without its ending) in the folder of another one."""
    found = (table.parent / f"{name}{ending}" for ending in ENDINGS)
    return next((path for path in found if path.is_file()), None)
