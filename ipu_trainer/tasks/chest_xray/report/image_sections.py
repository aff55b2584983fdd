"""Sections of report.html that show images: example predictions, and saliency maps beside the boxes of radiologists."""

from __future__ import annotations

from collections import Counter
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.tasks.chest_xray.data.text_files import base_name
from ipu_trainer.tasks.chest_xray.evaluation.metrics import wilson_interval
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import Evaluation
from ipu_trainer.tasks.chest_xray.explain.evaluated_images import EvaluatedImages, SaliencyMaps, choose_images
from ipu_trainer.tasks.chest_xray.explain.pointing_game import Box, BoxedImage, match_boxes, pointing_game
from ipu_trainer.tasks.reporting.drawing import grayscale_uri, overlay_uri
from ipu_trainer.tasks.reporting.html_document import Block, Case, Cases, EmbeddedImage, Table, Text, number

_MOST_BOXED = 12  # images shown; the pointing game counts all of them
_KINDS = {
    "found": ("Found", "positives of highest rank", "good"),
    "missed": ("Missed", "positives of lowest rank", "bad"),
    "false alarm": ("False alarms", "negatives of highest rank", "bad"),
}
Boxes = Mapping[str, Sequence[Box]]


def example_blocks(evaluation: Evaluation, images: EvaluatedImages, boxes: Boxes) -> List[Block]:
    """The best and the worst predictions, with images where the prepared data are available."""
    predictions = evaluation.predictions
    chosen = choose_images(predictions)
    examples = [example for found in chosen.values() for example in found]
    if not examples:
        return [Text("No finding has both classes and finite probabilities, so there are no examples.", "warning")]
    found_maps = images.maps([(predictions.file_names[example.row], example.column) for example in examples])
    maps = dict(zip(examples, found_maps))
    blocks: List[Block] = [
        Text(
            "Chosen by the rank of an image among all evaluated images for the same finding. The labels may be wrong: what "
            "looks like a wrong prediction may be a wrong label.",
            "note",
        )
    ]
    if images.why_no_images:
        blocks.append(Text(f"Without images: {images.why_no_images}", "warning"))
    if images.why_no_maps:
        blocks.append(Text(images.why_no_maps, "warning"))
    for kind, found in chosen.items():
        title, meaning, tone = _KINDS[kind]
        if not found:
            blocks.append(Text(f"{title}: none."))
            continue
        cases = []
        for example in found:
            finding, name = predictions.findings[example.column], predictions.file_names[example.row]
            labels = [f for f, y in zip(predictions.findings, predictions.truth[example.row]) if y == 1]
            num_unknown = int(np.isnan(predictions.truth[example.row]).sum())
            unknown = f" ({num_unknown} of {len(predictions.findings)} unknown)" if num_unknown else ""
            lines = [
                f"probability {number(predictions.probability[example.row, example.column])} "
                f"(threshold {number(evaluation.thresholds.get(finding))}), above {100 * example.rank:.0f} % of the images",
                f"labels: {', '.join(labels) or 'none'}{unknown}",
            ]
            of_finding = [box for box in boxes.get(base_name(name), ()) if box.finding == finding]
            cases.append(_case(finding, name, lines, images, of_finding, maps[example], tone))
        blocks += [Text(f"{title}: {meaning}."), Cases(cases)]
    return blocks


def localisation_blocks(evaluation: Evaluation, images: EvaluatedImages, boxes: Optional[Boxes]) -> List[Block]:
    """The pointing game, and the most probable images with boxes."""
    if boxes is None:
        return [
            Text(
                "Localisation was not measured. To play the pointing game with the boxes that radiologists drew (NIH's "
                "BBox_List_2017.csv): ipu-trainer report RUN --boxes FILE.",
                "note",
            )
        ]
    boxed = match_boxes(evaluation.predictions, images, boxes)
    summary = (
        f"{len({image.name for image in boxed.images})} of the {boxed.num_evaluated:,} evaluated images have boxes, "
        f"{len(boxed.images)} pairs of image and finding; the file lists {boxed.num_listed:,} images, "
        f"{boxed.num_in_other_splits} of them in other splits of these data."
    )
    if boxed.unknown_findings:
        summary += f" The model has no output for {', '.join(boxed.unknown_findings)}."
    if not boxed.images:
        return [Text(summary + " There is nothing to localise.", "warning")]
    if not any(image.maps for image in boxed.images):
        return [Text(f"{summary} {images.why_no_images or images.why_no_maps}", "warning")]
    few = " This is a small number: mind the intervals." if len(boxed.images) < 100 else ""
    rows = []
    for row in pointing_game(boxed):
        shares = [
            f"{hits} ({number(hits / row.num_images, 2)})"
            for hits in (row.gradient_hits, row.rollout_hits, row.centre_hits)
        ]
        low_and_high = " – ".join(number(bound, 2) for bound in wilson_interval(row.gradient_hits, row.num_images))
        chance = f"{number(row.random_hits, 1)} ({number(row.random_hits / row.num_images, 2)})"
        rows.append([row.finding, str(row.num_images), shares[0], low_and_high, *shares[1:], chance])
    head = ["finding", "images", "hits, gradient-weighted", "95 % interval", "hits, rollout", "image centre", "chance"]
    cases = [
        _case(
            boxed.findings[image.column],
            image.name,
            [f"probability {number(image.probability)}", "hit" if image.is_hit else "missed"],
            images,
            image.boxes,
            image.maps,
            "good" if image.is_hit else "bad",
        )
        for image in _most_probable(boxed.images)
    ]
    return [
        Text(summary + few),
        Table(head, rows, [len(rows) - 1]),
        Text(
            "Pointing game: a hit is a saliency map whose maximum lies inside a box of the finding. Chance is the expected "
            "number of hits of a random point; the image centre is the second baseline. Gradient-weighted attention depends on "
            "the finding, rollout is the same for all findings. Both show what the model used, not why, and no map proves that "
            "a finding is present.",
            "note",
        ),
        Text(f"{len(cases)} of the pairs, the most probable of each finding first; boxes in light blue:"),
        Cases(cases),
    ]


def _case(
    finding: str,
    name: str,
    lines: Sequence[str],
    images: EvaluatedImages,
    boxes: Sequence[Box],
    maps: Optional[SaliencyMaps],
    tone: str,
) -> Case:
    """One example with its image, boxes and maps, as far as they are available."""
    shown: List[EmbeddedImage] = []
    if name in images:
        pixels, rectangles = images.pixels(name), [box.rectangle for box in boxes]
        shown.append(EmbeddedImage(grayscale_uri(pixels, rectangles), "image"))
        if maps is not None:
            shown.append(EmbeddedImage(overlay_uri(pixels, maps.gradient, rectangles), "gradient-weighted"))
            shown.append(EmbeddedImage(overlay_uri(pixels, maps.rollout, rectangles), "rollout"))
    return Case(finding, [base_name(name), *lines], shown, tone)


def _most_probable(images: Sequence[BoxedImage]) -> List[BoxedImage]:
    """The most probable image of each finding, then the second of each, and so on."""
    rounds: List[Tuple[int, BoxedImage]] = []
    seen: Counter[int] = Counter()
    for image in sorted(images, key=lambda image: (-image.probability, image.name)):
        rounds.append((seen[image.column], image))
        seen[image.column] += 1
    return [image for _, image in sorted(rounds, key=lambda pair: pair[0])[:_MOST_BOXED]]
