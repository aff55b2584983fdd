"""A page as values, and the template that makes HTML of them.

Sections hold blocks; a block says what is to be seen, the template how. All text is escaped. The two things that are not
text are drawings, whose SVG comes from drawing.py alone, and pictures, which are data URIs that pictures.py made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Sequence, Tuple, Union

import jinja2
from markupsafe import Markup

from ipu_trainer.atomic import PathLike, write_text

_LONGEST_CELL = 400
_ID = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Text:
    """A paragraph. tone: "" (plain), "note" (small and quiet) or "warning"."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Preformatted:
    """Text whose columns were made for a terminal."""

    kind: ClassVar[str] = "preformatted"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[Tuple[str, str]]


@dataclass(frozen=True)
class Tiles:
    """The few numbers that are read first: (label, value, what belongs to it)."""

    kind: ClassVar[str] = "tiles"
    rows: Sequence[Tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """head has a name for each column; the first column names the row. strong: positions of rows that stand out."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Drawing:
    """SVG of drawing.py. size: "card" (one of several), "" (a column of text) or "wide" (scrolls on a phone)."""

    kind: ClassVar[str] = "drawing"
    svg: str
    caption: str
    size: str = ""


@dataclass(frozen=True)
class Picture:
    """uri: data:image/...;base64,... of pictures.py."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Case:
    """One image with what is said of it. tone: "good", "bad" or ""."""

    title: str
    lines: Sequence[str]
    pictures: Sequence[Picture]
    tone: str = ""


@dataclass(frozen=True)
class Cases:
    kind: ClassVar[str] = "cases"
    cases: Sequence[Case]


@dataclass(frozen=True)
class Cards:
    """Drawings side by side, as many in a row as there is room for."""

    kind: ClassVar[str] = "cards"
    drawings: Sequence[Drawing]


@dataclass(frozen=True)
class Beside:
    """Blocks beside each other where the screen is wide enough, below each other on a phone."""

    kind: ClassVar[str] = "beside"
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Blocks that are seen when their title is opened."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Block]


Block = Union[Text, Preformatted, Facts, Tiles, Table, Drawing, Cards, Cases, Beside, Folded]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """notice is what no reader may miss; it stands under the title and at the end."""

    title: str
    subtitle: str
    notice: str
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(Path(__file__).parent)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _Inline()
    environment.filters["short"] = _short
    return environment.get_template("page.html").render(page=page)


def write_page(file: PathLike, page: Page) -> None:
    write_text(file, render(page))


class _Inline:
    """SVG to stand inside of HTML: the ids of several drawings must not meet."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, drawing: Drawing) -> Markup:
        self.count += 1
        body = drawing.svg[drawing.svg.index("<svg") :]
        scoped = _ID.sub(rf"\g<1>d{self.count}-", body)
        label = Markup.escape(drawing.caption)
        return Markup(scoped.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _short(text: Any, most: int = _LONGEST_CELL) -> str:
    told = str(text)
    return told if len(told) <= most else told[: most - 1] + "…"


def number(value: Any, digits: int = 3) -> str:
    """A number as tables have it; what is no number, or was written as null, is a dash."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    return f"{value:.{digits}f}"


def interval(bounds: Any, digits: int = 3) -> str:
    low, high = (bounds or (None, None))[:2]
    return "–" if number(low) == "–" else f"{number(low, digits)} – {number(high, digits)}"


def differing(names: Sequence[str], columns: Sequence[Any]) -> List[List[str]]:
    """Rows (name, value of each column) of the names whose values are not all the same. columns are mappings."""
    rows = []
    for name in names:
        values = [column.get(name) for column in columns]
        if any(value != values[0] for value in values[1:]):
            rows.append([name, *("–" if value is None else str(value) for value in values)])
    return rows


def flat(value: Any, prefix: str = "") -> Dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: Dict[str, Any] = {}
    for name, item in value.items():
        result.update(flat(item, f"{prefix}.{name}" if prefix else str(name)))
    return result
