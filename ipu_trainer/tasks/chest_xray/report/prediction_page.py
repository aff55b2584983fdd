"""`ipu-trainer predict --html`: new images on one offline page, with their findings and where the model looked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np
import torch

from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.data.text_files import base_name
from ipu_trainer.tasks.chest_xray.explain.saliency import load_for_saliency, saliency
from ipu_trainer.tasks.chest_xray.predict import RunPredictor, above_threshold
from ipu_trainer.tasks.reporting.drawing import grayscale_uri, overlay_uri
from ipu_trainer.tasks.reporting.html_document import (
    Block,
    Case,
    Cases,
    EmbeddedImage,
    Page,
    Section,
    Table,
    Text,
    number,
    write_page,
)

_MOST_LINES = 5


def write_prediction_page(file: Path, predictor: RunPredictor, paths: Sequence[str], num_predicted: int) -> None:
    """Write the page with the images at paths, the first of num_predicted."""
    found = predictor.predict(paths)
    blocks: List[Block] = []
    if len(paths) < num_predicted:
        blocks.append(Text(f"The first {len(paths):,} of {num_predicted:,} images; --html_images shows more.", "note"))
    try:
        model, why_no_maps = load_for_saliency(predictor.run.folder, predictor.findings), ""
    except (ValueError, OSError) as error:
        model, why_no_maps = None, f"No saliency maps: {error}"
    if why_no_maps:
        blocks.append(Text(why_no_maps, "warning"))
    rows = zip(found.file_names, found.probability)
    blocks.append(Cases([_case(predictor, model, path, probability) for path, probability in rows]))
    if found.rejected:
        blocks.append(Table(["not read", "reason"], [[path, reason] for path, reason in found.rejected.items()]))
    about = (
        "Saliency maps show what the model used for the finding in the caption, not that it is there. Thresholds were chosen on "
        "the run's validation split; findings below theirs are not named."
    )
    record = predictor.run.record
    notice = "Not for clinical use."
    if record.get("synthetic_data"):
        notice += " Trained on synthetic phantoms: the numbers say nothing about patients."
    page = Page(
        f"Predictions of {predictor.run.name}",
        f"{len(found):,} images, model {record['model']}, precision {predictor.predictor.precision}",
        notice,
        [Section("Images", [*blocks, Text(about, "note")])],
    )
    write_page(file, page)


def _case(predictor: RunPredictor, model: Any, path: str, probability: np.ndarray) -> Case:
    found = above_threshold(probability.tolist(), predictor.findings, predictor.thresholds)
    ranked = _by_threshold(predictor, probability)
    lines = [base_name(path)]
    lines += [
        f"{name} {number(value)} (threshold {number(predictor.thresholds[name])})"
        for name, value in ranked[:_MOST_LINES]
    ]
    pixels = predictor.decoding(Path(path).read_bytes())
    images = [EmbeddedImage(grayscale_uri(pixels, []), "image")]
    if model is not None and ranked:
        finding = ranked[0][0]
        normalised = predictor.predictor.normalisation(torch.from_numpy(np.array(pixels))[None].float() / 255.0)
        maps = saliency(model, normalised, [predictor.findings.index(finding)])
        images.append(EmbeddedImage(overlay_uri(pixels, maps.gradient[0], []), f"{finding}, {maps.method}"))
    return Case(", ".join(found) or "no finding above its threshold", lines, images, "bad" if found else "good")


def _by_threshold(predictor: RunPredictor, probability: np.ndarray) -> List[Tuple[str, float]]:
    """Findings by probability relative to their threshold, "No Finding" apart; those without a threshold last."""
    rows = [(name, float(value)) for name, value in zip(predictor.findings, probability) if name != NO_FINDING]

    def excess(row: Tuple[str, float]) -> float:
        threshold = predictor.thresholds[row[0]]
        return -math.inf if math.isnan(threshold) else row[1] / max(threshold, 1e-6)

    return sorted(rows, key=excess, reverse=True)
