"""What every reader of labels yields, and the choices that apply to all of them.

A reader turns its files into Labels: LabelRecords, one for each image as the data set names it, whose image nobody has looked for
yet, and sentences for the output. A finding of an image is present, absent, or unknown: uncertain, or not labelled.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.finding_names import same_finding
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING

UNCERTAIN = ("ignore", "zeros", "ones")
BLANK = ("ignore", "zeros")


class LabelRecord(NamedTuple):
    """One image of a data set.

    image: its name or path, as the data set writes it. written: what is compared where two rows describe one image. error: why
    the row cannot be used. patient_id, study_id and split ("train", "validation", "test") are empty where the data set has none.
    """

    line: int
    image: str
    findings: Tuple[str, ...] = ()
    unknown: Tuple[str, ...] = ()
    patient_id: str = ""
    study_id: str = ""
    age: Optional[int] = None
    sex: str = ""
    view: str = ""
    follow_up: Optional[int] = None
    split: str = ""
    written: str = ""
    error: str = ""


@dataclass
class Labels:
    """The records of a data set and what is said of them. notes, no_label and columns are complete once records are used up.

    table: the file that messages name; also: others that are read with it; header: its columns, for the output.
    columns: the findings that the data set knows. has_patients: a record without a patient id is refused.
    no_label: images without any label, which are left out.
    last_part_is_unique: whether the last part of a path names its image, wherever the file lies.
    """

    title: str
    table: Path
    records: Iterator[LabelRecord]
    has_patients: bool = True
    also: List[Path] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    columns: List[str] = field(default_factory=list)
    no_label: List[str] = field(default_factory=list)
    header: List[str] = field(default_factory=list)
    last_part_is_unique: bool = True


@dataclass(frozen=True)
class LabelChoices:
    """What the user chose.

    findings: the names to keep; None for the format's own, empty for every name. uncertain: what -1 becomes, unknown (ignore),
    absent (zeros) or present (ones). blank: what an empty cell becomes where a data set leaves out what a report does not
    mention, unknown (ignore) or absent (zeros).
    """

    findings: Optional[Tuple[str, ...]] = None
    uncertain: str = "ignore"
    blank: str = "ignore"

    def __post_init__(self) -> None:
        for flag, value, values in (("--uncertain", self.uncertain, UNCERTAIN), ("--blank", self.blank, BLANK)):
            if value not in values:
                raise UserError(f"{flag} {value!r} is not one of {', '.join(values)}.")

    def kept(self, name: str) -> Optional[str]:
        """The finding `name` as it is stored: as --findings spells it, else as the data set does; None if it is not asked for."""
        if self.findings:
            return same_finding(name, self.findings)
        return same_finding(name, (NO_FINDING,)) or name

    def kept_columns(self, names: Sequence[str], table: Path) -> Dict[str, str]:
        """{name in the data set: name that is stored} of the names that are kept.

        Raises UserError if a finding that is asked for is none of the names, or if two names are one finding.
        """
        kept = {name: stored for name, stored in ((name, self.kept(name)) for name in names) if stored is not None}
        if len(set(kept.values())) < len(kept):
            raise UserError(f"{table} has two columns for one finding. Its findings: {', '.join(names)}.")
        refuse_missing(self.findings or (), list(kept.values()), names, table)
        return kept


def refuse_missing(asked: Sequence[str], found: Sequence[str], names: Sequence[str], table: Path) -> None:
    """Raises UserError for a finding that is asked for and is none of found; names are those of the data set."""
    for name in asked:
        if name not in found and name != NO_FINDING:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            raise UserError(
                f"--findings {name}: {table} has no such finding{f', nearest is {near[0]!r}' if near else ''}. "
                f"It has {', '.join(list(names)[:20])}{' ...' if len(names) > 20 else ''}."
            )
