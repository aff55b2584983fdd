"""The labels of an image in one value: names of findings, or a number for each finding (N-hot).

N-hot labels do not say what their columns are. The names come from --findings, or from the prepared.json beside the labels, or, if
there are 15, they are NIH's in alphabetical order: so Graphcore's tutorial on chest X-rays made them (numpy.unique of the labels).
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import FindingColumns, Verdict, is_no_finding
from ipu_trainer.tasks.chest_xray.data.label_formats.chexpert import DEVICES
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, refuse_missing
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, NO_FINDING

_TOKENS = re.compile(r"""'[^']*'|"[^"]*"|[\[\],]|[^\s\[\],'"]+""")


def as_list(value: Any) -> Optional[List[Any]]:
    """The items of a list, of the text of one ("[0.0, 1.0]", "['Mass']") or of names between | ; None where nothing is labelled."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return list(value)
    text = str(value).strip()
    if text.lower() in ("", "nan", "null", "none"):
        return None
    found = list_in_text(text)
    if found is not None:
        return found
    return [name.strip() for name in text.split("|") if name.strip()]


def list_in_text(text: str) -> Optional[List[Any]]:
    """The list that JSON, Python or numpy (without commas) wrote; None if the text is none of these."""
    tokens = _TOKENS.findall(text)
    if tokens[:1] != ["["] or tokens[-1:] != ["]"]:
        return None
    if "," not in tokens and any(_is_quoted(one) == _is_quoted(two) for one, two in zip(tokens[1:], tokens[2:-1])):
        # Python would join neighbouring strings to one.
        return [token[1:-1] if _is_quoted(token) else _number_or_text(token) for token in tokens[1:-1]]
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)  # type: ignore[operator]  # two functions of text
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return None


def _is_quoted(token: str) -> bool:
    return token[0] in "'\""


def _number_or_text(token: str) -> Any:
    try:
        return float(token)
    except ValueError:
        return token


class WrittenLabels:
    """Reads labels after seeing all of them once: first see() each value, then decide(), then verdict() of each."""

    def __init__(self, choices: LabelChoices, table: Path) -> None:
        self._choices = choices
        self._table = table
        self._lengths: Dict[int, int] = {}  # of N-hot labels: the place of the first
        self._names: Dict[str, int] = {}
        self._columns: Optional[FindingColumns] = None
        self._kept: Dict[str, str] = {}
        self._adds_healthy = False
        self._verdicts: Dict[Tuple[str, ...], Verdict] = {}

    def see(self, place: int, value: Any) -> None:
        """place: a line or row, for messages."""
        for item in as_list(value) or ():
            if isinstance(item, str):
                self._names.setdefault(item.strip(), place)
            else:
                self._lengths.setdefault(len(as_list(value) or ()), place)
                break

    def decide(self, names: Sequence[str] = ()) -> Tuple[List[str], List[str]]:
        """(findings, sentences for the output). names: those of N-hot columns, where the data set says them.

        Raises UserError if labels have several forms or lengths, or if nothing names the columns of N-hot labels.
        """
        if self._names and self._lengths:
            lines = f"{next(iter(self._names.values()))} and {next(iter(self._lengths.values()))}"
            raise UserError(
                f"{self._table}: labels are names in some rows and numbers in others (lines {lines}). Use one."
            )
        if not self._lengths:
            self._kept = {
                name: stored for name in self._names for stored in [self._choices.kept(name)] if stored is not None
            }
            refuse_missing(self._choices.findings or (), list(self._kept.values()), sorted(self._names), self._table)
            return sorted(set(self._kept.values())), []
        if len(self._lengths) > 1:
            some = ", ".join(f"{length} in line {line}" for length, line in list(self._lengths.items())[:3])
            raise UserError(
                f"{self._table}: labels of several lengths ({some}). Each needs one number for each finding."
            )
        columns, source = self._names_of_columns(next(iter(self._lengths)), names)
        return columns, [f"labels are numbers; their {len(columns)} findings are {source}: {', '.join(columns)}"]

    def _names_of_columns(self, count: int, names: Sequence[str]) -> Tuple[List[str], str]:
        asked = self._choices.findings or ()
        hint = _of_prepared(self._table)
        if names and len(names) == count:
            columns, source = list(names), "those of the data set"
        elif len(asked) == count:
            columns, source = list(asked), "those of --findings"
        elif len(hint) == count:
            columns, source = list(hint), f"those of {self._table.with_name('prepared.json')}"
        elif count == len(NIH_FINDINGS) and not asked:
            columns, source = (
                list(NIH_FINDINGS),
                "NIH's fifteen in alphabetical order, as Graphcore's tutorial wrote them",
            )
        else:
            given = f"--findings has {len(asked)} names" if asked else "nothing names them"
            raise UserError(
                f"{self._table}: labels are {count} numbers, and {given}. Give the {count} names in the order of the numbers: "
                "--findings A,B,..."
            )
        choices = (
            self._choices
            if names and len(names) == count
            else LabelChoices((), self._choices.uncertain, self._choices.blank)
        )
        kept = choices.kept_columns(columns, self._table)
        self._columns = FindingColumns(dict(enumerate(columns)), kept, choices, (DEVICES,))
        self._adds_healthy = not any(map(is_no_finding, columns))
        return [kept[name] for name in columns if name in kept], source

    def describe(self) -> List[str]:
        return [] if self._columns is None else self._columns.describe()

    def verdict(self, value: Any) -> Verdict:
        """Labels of numbers without a column "No Finding" have it where all of them are 0."""
        items = as_list(value)
        if items is None:
            return Verdict((), (), False)
        if self._columns is not None:
            if not items:
                return Verdict((), (), True, "an empty list of numbers: write one for each finding")
            return with_healthy(
                self._columns.verdict(["" if item is None else str(item) for item in items]), self._adds_healthy
            )
        names = tuple(str(item).strip() for item in items if str(item).strip())
        if names not in self._verdicts:
            self._verdicts[names] = self._of_names(names)
        return self._verdicts[names]

    def _of_names(self, names: Sequence[str]) -> Verdict:
        if not names:
            return Verdict((), (), True, f"empty label: write {NO_FINDING!r} for an image without findings")
        others = [name for name in names if not is_no_finding(name) and name != DEVICES]
        if others and any(map(is_no_finding, names)):
            return Verdict((), (), True, f"{NO_FINDING!r} together with other findings in {'|'.join(names)!r}")
        return Verdict(tuple(sorted({self._kept[name] for name in names if name in self._kept})), (), True)


def with_healthy(verdict: Verdict, adds: bool) -> Verdict:
    """With "No Finding" where adds is true and every finding is absent."""
    if adds and verdict.labelled and not verdict.error and not verdict.present and not verdict.unknown:
        return Verdict((NO_FINDING,), (), True)
    return verdict


def _of_prepared(table: Path) -> List[str]:
    """The findings of the prepared.json beside a metadata.jsonl that `prepare` wrote; [] without one."""
    if not table.with_name("prepared.json").is_file():
        return []
    try:
        manifest: Mapping[str, Any] = json.loads(table.with_name("prepared.json").read_text(encoding="utf-8"))
        return [str(name) for name in manifest["findings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
