"""The planner's error on every published row, as Markdown and SVG: what `calibrate --document` writes into docs/planner.md."""

from __future__ import annotations

import math
from statistics import median
from typing import Dict, List, Mapping, Sequence, Tuple
from xml.sax.saxutils import escape

from ipu_trainer.errors import UserError
from ipu_trainer.planner.constants import DOES_NOT_FIT_ABOVE, FITS_BELOW, FULLEST, Calibration, MemoryConstants
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.published import PublishedRow
from ipu_trainer.planner.time import predict_time

BEGIN = "<!-- begin: python -m ipu_trainer.planner.calibrate --document -->"
END = "<!-- end -->"
_COLOURS = {"bert": "#1f5fa8", "gpt2": "#c8501e", "image": "#2c8a4b", "unseen": "#8a8a8a"}


def replace_between_markers(text: str, section: str) -> str:
    """The document with the section between its markers. Raises UserError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the document has no lines {BEGIN!r} and {END!r}. Add both where the table belongs.")
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def section(rows: Sequence[PublishedRow], held: Mapping[PublishedRow, float], result: Calibration) -> str:
    """Errors by family, a line for every row, and how little memory's terms are known."""
    return "\n\n".join(
        (
            _families(held, result),
            "![Predicted against published throughput](images/planner_errors.svg)",
            _table(rows, held, result),
            _sensitivity(rows),
        )
    )


def _families(held: Mapping[PublishedRow, float], result: Calibration) -> str:
    lines = ["| family | rows | shapes | median | worst | interval shown |", "|---|---|---|---|---|---|"]
    for family in sorted({row.family for row in held}):
        errors = sorted(abs(value) for row, value in held.items() if row.family == family)
        shapes = len({row.group for row in held if row.family == family})
        spread = result.time.spread_of(family)
        lines.append(
            f"| {family} | {len(errors)} | {shapes} | {_percent(median(errors))} | {_percent(errors[-1])} | "
            f"/ {spread:.2f} to x {spread:.2f} |"
        )
    sizes = sorted(abs(value) for value in held.values())
    lines.append(
        f"| all | {len(sizes)} | {len({row.group for row in held})} | {_percent(median(sizes))} | {_percent(sizes[-1])} | |"
    )
    lines.append(
        f"| unseen | | | | | / {result.time.spread_of('unseen'):.2f} to x {result.time.spread_of('unseen'):.2f} |"
    )
    return "\n".join(lines)


def _table(rows: Sequence[PublishedRow], held: Mapping[PublishedRow, float], result: Calibration) -> str:
    lines = [
        "| model | tokens | micro-batch | layers per IPU | replicas | chip | published | predicted | error, held out | SRAM | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.job is None:
            lines.append(f"| {row.model} | | | | | | {_number(row.throughput)} | | | | {row.not_modelled} |")
            continue
        job = row.job
        share = predict_memory(row.workload, job, result.memory).share
        predicted, error, notes = "", "", [] if row.fits else ["documented as not fitting"]
        if row.is_timed:
            value = predict_time(row.workload, job, row.ipu, result.time).throughput
            predicted = _number(value)
            if row in held:
                error = f"{100 * held[row]:+.0f} %"
            else:
                assert row.throughput is not None
                error = f"({100 * (value / row.throughput - 1):+.0f} %)"
                notes.append("includes evaluation, not fitted" if row.includes_evaluation else "unseen family")
        tokens = f"{row.sequence or ''}" + (f" + {row.target}" if row.target else "")
        placement = " ".join(map(str, job.layers_per_ipu))
        lines.append(
            f"| {row.model} | {tokens} | {job.micro_batch} | {placement} | {job.replicas} | {row.ipu.name} | "
            f"{_number(row.throughput)} | {predicted} | {error} | {share:.2f} | {', '.join(notes)} |"
        )
    return "\n".join(lines)


def _sensitivity(rows: Sequence[PublishedRow]) -> str:
    """Each uncertain term halved and doubled, the constant refitted: sources cannot tell these models apart."""
    lines = [
        "| memory term | times | code, MiB | fit, in `fits` | fit, in `does not fit` | misfits in `fits` |",
        "|---|---|---|---|---|---|",
    ]
    variants: List[Tuple[str, float]] = [("as it is", 1.0)]
    variants += [(name, scale) for name in ("stash", "recomputation", "temporary", "head") for scale in (0.5, 2.0)]
    for name, scale in variants:
        shares, code = _scaled(rows, name, scale)
        fits = [share for row, share in shares if row.fits]
        misfits = [share for row, share in shares if not row.fits]
        lines.append(
            f"| {name} | {scale:g} | {code / 2**20:.0f} | {sum(share < FITS_BELOW for share in fits)} of {len(fits)} | "
            f"{sum(share > DOES_NOT_FIT_ABOVE for share in fits)} | "
            f"{sum(share < FITS_BELOW for share in misfits)} of {len(misfits)} |"
        )
    return "\n".join(lines)


def _scaled(rows: Sequence[PublishedRow], name: str, scale: float) -> Tuple[List[Tuple[PublishedRow, float]], float]:
    totals: Dict[PublishedRow, float] = {}
    sram = 1.0
    for row in rows:
        if row.job is not None:
            memory = predict_memory(row.workload, row.job, MemoryConstants(0.0))
            sram = memory.sram_bytes
            totals[row] = max(
                sum(size * (scale if purpose == name else 1.0) for purpose, size in ipu.items()) for ipu in memory.ipus
            )
    code = min(FULLEST * sram - total for row, total in totals.items() if row.fits)
    return [(row, (total + code) / sram) for row, total in totals.items()], code


def plot(rows: Sequence[PublishedRow], held: Mapping[PublishedRow, float]) -> str:
    """Predicted by constants that have not seen the row against published, both in samples a second, as an SVG."""
    points = [(row.throughput, row.throughput * (1 + value), row) for row, value in held.items() if row.throughput]
    low, high = 50.0, 50000.0
    width, height, left, top = 560, 520, 70, 20
    side = 430

    def at(value: float) -> float:
        return side * (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#444"/>',
    ]
    for factor, dash in ((0.8, "4 4"), (1.0, ""), (1.25, "4 4")):
        x1, y1 = max(low, low / factor), max(low, low * factor)
        x2, y2 = min(high, high / factor), min(high, high * factor)
        lines.append(
            f'<line x1="{left + at(x1):.1f}" y1="{top + side - at(y1):.1f}" x2="{left + at(x2):.1f}" '
            f'y2="{top + side - at(y2):.1f}" stroke="#999" stroke-dasharray="{dash}"/>'
        )
    for tick in (100, 1000, 10000):
        lines.append(f'<text x="{left + at(tick):.1f}" y="{top + side + 18}" text-anchor="middle">{tick:,}</text>')
        lines.append(f'<text x="{left - 8}" y="{top + side - at(tick) + 4:.1f}" text-anchor="end">{tick:,}</text>')
    for published, predicted, row in points:
        title = escape(f"{row.model} {row.sequence} {row.ipu.name}: published {published:g}, predicted {predicted:.0f}")
        lines.append(
            f'<circle cx="{left + at(published):.1f}" cy="{top + side - at(predicted):.1f}" r="4" fill-opacity="0.7" '
            f'fill="{_COLOURS[row.family]}"><title>{title}</title></circle>'
        )
    for index, family in enumerate(sorted({row.family for row in held})):
        y = top + 18 + 18 * index
        lines.append(f'<circle cx="{left + 14}" cy="{y}" r="4" fill="{_COLOURS[family]}"/>')
        lines.append(f'<text x="{left + 24}" y="{y + 4}">{family}</text>')
    lines += [
        f'<text x="{left + side / 2}" y="{top + side + 42}" text-anchor="middle">published, samples per second '
        "(dashed: 25 % off)</text>",
        f'<text transform="translate(16 {top + side / 2}) rotate(-90)" text-anchor="middle">predicted, shape left out of '
        "the fit</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
