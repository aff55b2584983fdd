"""Small matplotlib drawings as SVG: text stays text, ink takes the page's colour, so light and dark pages both work.

They are drawn as wide as a phone shows them (about 4.6 inches), so that their text can be read there.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

_INK = "#010203"  # stands for the page's own ink until the drawing is written
BLUE, RED, GREEN, ORANGE, GREY = "#3f7fc4", "#d25c50", "#3c9a6c", "#d08a2a", "#8b939b"
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


@contextlib.contextmanager
def canvas(width: float = 4.6, height: float = 3.0, columns: int = 1) -> Iterator[Tuple[Any, List[Any], List[str]]]:
    """(figure, its axes side by side, a list that holds the SVG afterwards), drawn in the style above. Inches.

    The layout is worked out from the drawing; several columns have a fixed one, which takes half the time.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out: List[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained" if columns == 1 else None)
        FigureCanvasSVG(figure)
        if columns > 1:
            figure.subplots_adjust(0.095, 0.23, 0.97, 0.88, wspace=0.52)
        yield figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)], out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    out.append(_tidy(buffer.getvalue()))


def _tidy(svg: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    return re.sub(r"\n\s+", "\n", svg.replace(_INK, "currentColor"))


def curves(
    lines: Sequence[Tuple[str, Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    logarithmic: bool = False,
    markers: bool = False,
) -> str:
    """Lines (label, x, y) in one drawing; y that is no number leaves a gap. More than 400 points are thinned out."""
    with canvas() as (_, (axes,), out):
        for (label, x, y), colour in zip(lines, _cycle()):
            xs, ys = thinned(x, y)
            style = {"marker": "o", "markersize": 2.5} if markers or len(xs) == 1 else {}
            axes.plot(xs, ys, color=colour, linewidth=1.3, label=label, **style)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if logarithmic:
            axes.set_yscale("log")
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks(lambda value, _: f"{value:g}")  # the scale's own labels are formulas
        if len(lines) > 1:
            axes.legend(fontsize=8)
        _grid(axes)
    return out[0]


def forest(
    rows: Sequence[Tuple[str, Sequence[Tuple[float, float, float]]]],
    legend: Sequence[str] = (),
    line: Optional[Tuple[float, str]] = None,
    xlabel: str = "AUROC, 95 % interval",
    reference: float = 0.5,
) -> str:
    """A forest plot: rows (name, [(value, low, high) of each series]) from top to bottom; a value that is NaN is left out."""
    height = 0.75 + (0.26 if len(legend) < 2 else 0.2 + 0.14 * len(legend)) * max(2, len(rows))
    with canvas(4.8, height) as (_, (axes,), out):
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
        axes.axvline(reference, color=GREY, linewidth=0.7)
        if line is not None and np.isfinite(line[0]):
            axes.axvline(line[0], color=RED, linewidth=0.9, linestyle="--", label=line[1])
        axes.set_yticks(range(len(rows)), [name if len(name) <= 34 else name[:33] + "…" for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=8)
        _grid(axes, "x")
    return out[0]


def thinned(x: Any, y: Any, most: int = 400) -> Tuple[np.ndarray, np.ndarray]:
    """At most `most` of the points, first and last among them."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) <= most:
        return xs, ys
    chosen = np.unique(np.linspace(0, len(xs) - 1, most).round().astype(int))
    return xs[chosen], ys[chosen]


def stage_timeline(stages: Sequence[Any], schedule: Any) -> str:
    """A schedule as the simulator draws its traces: stages have index, ipu_id, blocks and forward_flops."""
    from ipu_trainer.simulator.analysis.trace import svg, timeline

    return svg(stages, timeline(stages, schedule))


def from_history(
    history: Sequence[Mapping[str, Any]], name: str, factor: float = 1.0
) -> Tuple[List[float], List[float]]:
    """(epochs, values times factor) of a key of Trainer's log history."""
    found = [(entry.get("epoch"), entry.get(name)) for entry in history]
    points = [
        (float(x), factor * float(y)) for x, y in found if isinstance(x, (int, float)) and isinstance(y, (int, float))
    ]
    return [x for x, _ in points], [y for _, y in points]


def _cycle() -> Iterator[str]:
    while True:
        yield from SERIES


def _grid(axes: Any, axis: str = "both") -> None:
    axes.grid(True, axis=axis, color=GREY, alpha=0.25, linewidth=0.5)
