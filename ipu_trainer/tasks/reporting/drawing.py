"""Matplotlib figures as SVG inside report.html or as PNG files, and images as JPEG data URIs.

In SVG, text stays text and ink takes the page's colour, so that light and dark pages both work. Figures are drawn as wide as a
phone shows them (about 4.6 inches), so that their text can be read there. pyplot and the caller's backend are left alone: a
notebook's own figures are still shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

from ipu_trainer.atomic import atomic_path

_INK = "#010203"  # a placeholder for the page's text colour, near enough to black for PNG
BLUE, RED, GREEN, ORANGE, GRAY = "#3f7fc4", "#d25c50", "#3c9a6c", "#d08a2a", "#8b939b"
SERIES = (BLUE, RED, GREEN, ORANGE, "#8e6bbf", "#3aa0a8", "#b8688f", "#7d8c3c")
_STYLE: Dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ipu_trainer",
    "text.parse_math": False,  # a finding or a file may have a $ in its name
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
Line = Tuple[str, Sequence[float], Sequence[float]]  # label, x, y


def new_figure(**settings: Any) -> Any:
    """A matplotlib figure without a window, outside pyplot."""
    from matplotlib.figure import Figure

    return Figure(**settings)


@contextlib.contextmanager
def styled_figure(
    width: float = 4.6, height: float = 3.0, columns: int = 1, margins: Optional[Mapping[str, float]] = None
) -> Iterator[Tuple[Any, List[Any]]]:
    """(figure, its axes side by side) in the style above. Inches.

    margins, as for subplots_adjust, replace the constrained layout; they take half its time.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = new_figure(figsize=(width, height), layout=None if margins else "constrained")
        if margins:
            figure.subplots_adjust(**margins)
        yield figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)]


def to_svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for side in ("width", "height"):
        svg = re.sub(rf"(<svg[^>]*?) {side}=\"[^\"]*\"", r"\1", svg, count=1)
    return re.sub(r"\n\s+", "\n", svg.replace(_INK, "currentColor"))


def save_png(file: Path, figure: Any) -> None:
    import matplotlib

    with matplotlib.rc_context(_STYLE), atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", facecolor="white")


def curves(lines: Sequence[Line], xlabel: str, ylabel: str, logarithmic: bool = False, markers: bool = False) -> Any:
    """A figure of several lines in one axes."""
    with styled_figure() as (figure, (axes,)):
        draw_curves(axes, lines, xlabel, ylabel, logarithmic, markers)
    return figure


def plot_training(
    file: Path, history: Sequence[Mapping[str, Any]], metric: str, label: str, logarithmic: bool = False
) -> None:
    """A PNG of the training loss and of the validation metric (a key of Trainer's log history) by epoch, side by side."""
    with styled_figure(9, 3.4, columns=2) as (figure, axes):
        draw_curves(axes[0], [("", *from_history(history, "loss"))], "epoch", "training loss")
        draw_curves(axes[1], [("", *from_history(history, metric))], "epoch", label, logarithmic, markers=True)
    save_png(file, figure)


def draw_curves(
    axes: Any, lines: Sequence[Line], xlabel: str, ylabel: str, logarithmic: bool = False, markers: bool = False
) -> None:
    """Lines by label. NaN in y leaves a gap; more than 400 points are thinned out."""
    from matplotlib import colormaps

    colours: Any = SERIES if len(lines) <= len(SERIES) else colormaps["tab20"](range(20))
    for number, (label, x, y) in enumerate(lines):
        xs, ys = thinned(x, y)
        style = {"marker": "o", "markersize": 2.5} if markers or len(xs) == 1 else {}
        axes.plot(xs, ys, color=colours[number % len(colours)], linewidth=1.3, label=label, **style)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if logarithmic:
        axes.set_yscale("log")
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(lambda value, _: f"{value:g}")  # the scale's own labels are formulas
    if len(lines) > 1:
        axes.legend(fontsize=8)
    _grid(axes)


def forest(
    rows: Sequence[Tuple[str, Sequence[Tuple[float, float, float]]]],
    legend: Sequence[str] = (),
    line: Optional[Tuple[float, str]] = None,
    xlabel: str = "AUROC, 95 % interval",
    reference: float = 0.5,
) -> Any:
    """A forest plot: rows (name, [(value, low, high) of each series]) from top to bottom; a NaN value is left out."""
    height = 0.75 + (0.26 if len(legend) < 2 else 0.2 + 0.14 * len(legend)) * max(2, len(rows))
    with styled_figure(4.8, height) as (figure, (axes,)):
        for position, (_, series) in enumerate(rows):
            for number, (value, low, high) in enumerate(series):
                if not np.isfinite(value):
                    continue
                y = position + (number - (len(series) - 1) / 2) * 0.7 / max(1, len(series))
                colour = SERIES[number % len(SERIES)]
                if np.isfinite(low) and np.isfinite(high):
                    axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
                label = legend[number] if number < len(legend) and position == 0 else None
                axes.plot([value], [y], "o", color=colour, markersize=4, label=label)
        axes.axvline(reference, color=GRAY, linewidth=0.7)
        if line is not None and np.isfinite(line[0]):
            axes.axvline(line[0], color=RED, linewidth=0.9, linestyle="--", label=line[1])
        axes.set_yticks(range(len(rows)), [name if len(name) <= 34 else name[:33] + "…" for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=8)
        _grid(axes, "x")
    return figure


def thinned(x: Any, y: Any, most: int = 400) -> Tuple[np.ndarray, np.ndarray]:
    """At most `most` of the points, first and last among them."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) <= most:
        return xs, ys
    chosen = np.unique(np.linspace(0, len(xs) - 1, most).round().astype(int))
    return xs[chosen], ys[chosen]


def from_history(
    history: Sequence[Mapping[str, Any]], name: str, factor: float = 1.0
) -> Tuple[List[float], List[float]]:
    """(epochs, values times factor) of a key of Trainer's log history."""
    found = [(entry.get("epoch"), entry.get(name)) for entry in history]
    points = [
        (float(x), factor * float(y)) for x, y in found if isinstance(x, (int, float)) and isinstance(y, (int, float))
    ]
    return [x for x, _ in points], [y for _, y in points]


def _grid(axes: Any, axis: str = "both") -> None:
    axes.grid(True, axis=axis, color=GRAY, alpha=0.25, linewidth=0.5)


SIDE = 200  # pixels on the longer side
Rectangle = Tuple[float, float, float, float]  # left, top, width, height in fractions of the image's sides


def grayscale_uri(pixels: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """Data URI of uint8 (height, width)."""
    return _jpeg(_resized(pixels), boxes)


def overlay_uri(pixels: np.ndarray, saliency_map: np.ndarray, boxes: Sequence[Rectangle] = ()) -> str:
    """Data URI of uint8 (height, width) under a saliency map (rows, columns), which is scaled to its own range.

    High values are opaque and low values transparent, so that the image stays visible where the saliency is low.
    """
    import matplotlib

    base = _resized(pixels)
    values = np.nan_to_num(np.asarray(saliency_map, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    wide = np.asarray(Image.fromarray(scaled).resize(base.size, Image.Resampling.BILINEAR))
    colour = matplotlib.colormaps["inferno"](wide)[..., :3] * 255.0
    opacity = 0.75 * wide[..., None]
    blended = (1.0 - opacity) * np.asarray(base, dtype=np.float32) + opacity * colour
    return _jpeg(Image.fromarray(blended.round().clip(0, 255).astype(np.uint8)), boxes)


def _resized(pixels: np.ndarray) -> Image.Image:
    """RGB with a longer side of SIDE."""
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    factor = SIDE / max(image.size)
    resample = Image.Resampling.BICUBIC if factor >= 1.0 else Image.Resampling.LANCZOS
    return image.resize((round(image.width * factor), round(image.height * factor)), resample).convert("RGB")


def _jpeg(image: Any, boxes: Sequence[Rectangle]) -> str:
    draw = ImageDraw.Draw(image)
    for left, top, width, height in boxes:
        corners = [left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height]
        draw.rectangle(corners, outline=(64, 224, 255), width=2)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
