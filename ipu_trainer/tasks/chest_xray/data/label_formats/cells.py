"""Cells of label tables as values: ages, sexes, and the verdict of one image's 1, 0, -1 and blank."""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ipu_trainer.tasks.chest_xray.data.finding_names import same_finding
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING

# An age above this is a typing error; NIH's 2017 edition has ages up to 414.
OLDEST_YEARS = 120
# None: nothing is labelled.
VALUES: Dict[str, Optional[int]] = {
    **dict.fromkeys(("1", "1.0", "true"), 1),
    **dict.fromkeys(("0", "0.0", "false"), 0),
    **dict.fromkeys(("-1", "-1.0"), -1),
    **dict.fromkeys(("", "nan", "none", "null")),
}
_OTHER = 9


class Verdict(NamedTuple):
    """The findings that are present and unknown in one image. labelled is False if every cell is blank."""

    present: Tuple[str, ...]
    unknown: Tuple[str, ...]
    labelled: bool
    error: str = ""


class FindingColumns:
    """Verdicts over columns of 1, 0, -1 and blank.

    columns: {position of a cell: name in the data set}. kept: {name in the data set: name that is stored}; the other columns are
    read as well, because "No Finding" rules the others out, except those in apart (a device is seen in a healthy chest too): where
    it is 1, their blanks are absent; where one of them is 1, it is absent itself. Verdicts of equal cells are one object, because
    a table has hundreds of thousands of rows and thousands of different ones.
    """

    def __init__(
        self, columns: Mapping[int, str], kept: Mapping[str, str], choices: LabelChoices, apart: Sequence[str] = ()
    ) -> None:
        self._positions = tuple(columns)
        self._names = tuple(columns.values())
        self._kept = kept
        self._choices = choices
        self._apart = frozenset(apart)
        self._known: Dict[Tuple[str, ...], Verdict] = {}
        self._seen: Dict[Tuple[str, ...], int] = {}

    def verdict(self, cells: Sequence[str]) -> Verdict:
        """error is the reason if a cell is none of the four, or "No Finding" is 1 together with another finding."""
        key = tuple([cells[position] for position in self._positions])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._decide(key)
            self._seen[key] = 0
        self._seen[key] += 1
        return found

    def describe(self) -> List[str]:
        """Sentences on the -1 and the blanks in what was read, by finding; none where there were none."""
        said = []
        for value, what, choice in (
            (-1, "-1 (uncertain)", self._choices.uncertain),
            (None, "blank", self._choices.blank),
        ):
            counts = {name: 0 for name in self._names if name in self._kept}
            for cells, times in self._seen.items():
                for name, text in zip(self._names, cells):
                    if name in counts and VALUES.get(text.strip().lower(), _OTHER) == value:
                        counts[name] += times
            if any(counts.values()):
                meaning = {"ignore": "unknown", "zeros": "absent", "ones": "present"}[choice]
                by_name = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
                said.append(f"{what} is read as {meaning}: {by_name}")
        return said

    def _decide(self, cells: Sequence[str]) -> Verdict:
        present: List[str] = []
        unknown: List[str] = []
        labelled = False
        for name, text in zip(self._names, cells):
            value = VALUES.get(text.strip().lower(), _OTHER)
            if value == _OTHER:
                return Verdict((), (), True, f"{text!r} in the column {name}: only 1, 0, -1 and blank are read")
            labelled = labelled or value is not None
            meant = self._choices.blank if value is None else self._choices.uncertain if value == -1 else str(value)
            if meant in ("1", "ones"):
                present.append(name)
            elif meant == "ignore":
                unknown.append(name)
        healthy = [name for name in present if is_no_finding(name)]
        others = [name for name in present if name not in healthy and name not in self._apart]
        if healthy and others:
            return Verdict((), (), True, f"{healthy[0]!r} is 1 together with {', '.join(others)}")
        if healthy:
            unknown = [name for name in unknown if name in self._apart]
        elif others:
            unknown = [name for name in unknown if not is_no_finding(name)]
        return Verdict(self._stored(present), self._stored(unknown), labelled)

    def _stored(self, names: Sequence[str]) -> Tuple[str, ...]:
        return tuple(sorted(self._kept[name] for name in names if name in self._kept))


def is_no_finding(name: str) -> bool:
    """Whether a data set calls an image without findings so: "No Finding", "normal", "No findings"."""
    return same_finding(name, (NO_FINDING,)) is not None


def age_of(text: str) -> Optional[int]:
    """Whole years, rounded down, of "57", "057Y", "18M" (months), "30D" (days); None if malformed or above OLDEST_YEARS."""
    text = text.strip().upper()
    unit = text[-1:] if text[-1:] in ("Y", "M", "D") else ""
    value = whole_number(text[: len(text) - len(unit)])
    if value is None:
        return None
    years = value // {"": 1, "Y": 1, "M": 12, "D": 365}[unit]
    return years if 0 <= years <= OLDEST_YEARS else None


def whole_number(text: str) -> Optional[int]:
    """Rounded toward 0; None if malformed, or larger than the 32 bits in which it is stored."""
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        return None
    return value if -(2**31) <= value < 2**31 else None


def sex_of(text: str) -> str:
    """ "F" or "M"; "" for anything else."""
    letter = text.strip().upper()[:1]
    return letter if letter in ("F", "M") else ""
