"""The best and the worst predictions, as the page shows them."""

from __future__ import annotations

from typing import List, Mapping, Sequence

from ipu_trainer.tasks.chest_xray.evaluation.predictions import ChosenImage, Predictions
from ipu_trainer.tasks.chest_xray.explain.boxes import Box, file_name
from ipu_trainer.tasks.chest_xray.explain.saliency_images import Looking, case_of
from ipu_trainer.tasks.reporting.html_document import Block, Cases, Text, number

_STORIES = {
    "found": ("Found", "positives that rank highest among all images", "good"),
    "missed": ("Missed", "positives that rank lowest", "bad"),
    "false alarm": ("False alarms", "negatives that rank highest", "bad"),
}


def prediction_blocks(
    predictions: Predictions,
    chosen: Mapping[str, Sequence[ChosenImage]],
    thresholds: Mapping[str, float],
    looking: Looking,
    boxes: Mapping[str, Sequence[Box]],
) -> List[Block]:
    """The best and the worst predictions, with pictures where the prepared data are at hand."""
    everything = [image for images in chosen.values() for image in images]
    if not everything:
        return [Text("No finding has both classes and numbers for probabilities: nothing is best or worst.", "warning")]
    heats = looking.heats([(predictions.file_names[image.row], image.column) for image in everything])
    heat = dict(zip(everything, heats))
    blocks: List[Block] = [
        Text(
            "Chosen by where an image ranks among all evaluated images for the same finding. Labels were not read from these "
            "pictures for this purpose: what looks like a wrong prediction may be a wrong label.",
            "note",
        )
    ]
    for reason in (looking.reason, looking.reason_no_model):
        if reason:
            blocks.append(Text(f"Without pictures: {reason}" if reason == looking.reason else reason, "warning"))
    for kind, images in chosen.items():
        title, what, tone = _STORIES[kind]
        if not images:
            blocks.append(Text(f"{title}: none."))
            continue
        blocks.append(Text(f"{title}: {what}."))
        cases = []
        for image in images:
            finding, name = predictions.findings[image.column], predictions.file_names[image.row]
            threshold = thresholds.get(finding, float("nan"))
            labels = [f for f, y in zip(predictions.findings, predictions.truth[image.row]) if y == 1]
            lines = [
                f"probability {number(predictions.probability[image.row, image.column])} (threshold {number(threshold)}), "
                f"above {100 * image.rank:.0f} % of the images",
                f"labels: {', '.join(labels) or 'none'}",
            ]
            own = [box for box in boxes.get(file_name(name), ()) if box.finding == finding]
            cases.append(case_of(finding, name, lines, looking, own, heat[image], tone))
        blocks.append(Cases(cases))
    return blocks
