"""An HTML page as values, rendered by the template page.html.

A page has sections, a section has blocks; a block holds content, the template gives it its form. All text is escaped. Two
things are not text: drawings and images, whose SVG and data URIs come from drawing.py.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence, Tuple, Union

import jinja2
from markupsafe import Markup

from ipu_trainer.atomic import PathLike, write_text
from ipu_trainer.tasks.output_guard import check_output_file, is_page

_LONGEST_CELL = 400
_ID = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Text:
    """A paragraph. tone: "" (plain), "note" (small and quiet) or "warning"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Preformatted:
    """Text in a fixed-width font, with columns as in a terminal."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[Tuple[str, str]]


@dataclass(frozen=True)
class Tiles:
    """The headline numbers: (label, value, detail)."""

    rows: Sequence[Tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """head has a name for each column; the first column names the row. strong: positions of rows in bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Drawing:
    """SVG of drawing.py. size: "card" (one of several), "" (a column of text) or "wide" (scrolls on a phone)."""

    svg: str
    caption: str
    size: str = ""


@dataclass(frozen=True)
class EmbeddedImage:
    """uri: data:image/...;base64,... of drawing.py."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Case:
    """One example: a title, lines of text and images. tone: "good", "bad" or ""."""

    title: str
    lines: Sequence[str]
    images: Sequence[EmbeddedImage]
    tone: str = ""


@dataclass(frozen=True)
class Cases:
    cases: Sequence[Case]


@dataclass(frozen=True)
class Cards:
    """Drawings in rows, as many in a row as fit."""

    drawings: Sequence[Drawing]


@dataclass(frozen=True)
class SideBySide:
    """Blocks in columns on a wide screen, below each other on a phone."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Collapsed:
    """Blocks that are hidden until the reader opens their title."""

    title: str
    blocks: Sequence[Block]


Block = Union[Text, Preformatted, Facts, Tiles, Table, Drawing, Cards, Cases, SideBySide, Collapsed]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """notice: a warning shown under the title and at the end."""

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
    environment.filters["inline"] = functools.partial(_inline, itertools.count(1))
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["short"] = _short
    return environment.get_template("page.html").render(page=page)


def write_page(file: PathLike, page: Page) -> None:
    """Raises UserError if file is there and no page that this function wrote."""
    check_output_file(Path(file), is_page)
    write_text(file, render(page))


def _inline(numbers: Iterator[int], drawing: Drawing) -> Markup:
    """SVG inside HTML, with ids that are unique on the page: numbers count its drawings."""
    body = drawing.svg[drawing.svg.index("<svg") :]
    scoped = _ID.sub(rf"\g<1>d{next(numbers)}-", body)
    label = Markup.escape(drawing.caption)
    return Markup(scoped.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _short(text: Any, most: int = _LONGEST_CELL) -> str:
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed digits; a dash for None (null in JSON), NaN and infinity."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    return f"{value:.{digits}f}"


def interval(bounds: Any) -> str:
    low, high = (bounds or (None, None))[:2]
    return "–" if number(low) == "–" else f"{number(low)} – {number(high)}"
