"""Findings and their N-hot encoding.

A label cell is `Finding|Finding|...`. Labels are N-hot over the sorted findings that occur in the data, including "No Finding"
(15 on the full ChestX-ray14). Spelling is NIH's, as in torchxrayvision: `Pleural_Thickening`.
"""

from __future__ import annotations

import difflib
import re
from typing import Collection, List, Optional, Sequence, Tuple

import numpy as np

from ipu_trainer.errors import UserError

NO_FINDING = "No Finding"
# Wang et al., "ChestX-ray8", CVPR 2017, extended to 14 findings in the data set's own README.
NIH_FINDINGS: Tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    NO_FINDING,
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)


class LabelError(UserError):
    """A label cell that is empty, names an unknown finding, or names findings that exclude each other."""


def parse_findings(cell: str, known: Collection[str] = NIH_FINDINGS) -> Tuple[str, ...]:
    """The findings of one label cell, sorted, in the spelling of `known`. An empty `known` accepts every name unchanged."""
    written = [name.strip() for name in cell.split("|") if name.strip()]
    findings = [spelled_as_known(name, known) or name for name in written]
    if not findings:
        raise LabelError(f"empty label {cell!r}: write {NO_FINDING!r} for an image without findings")
    for name in findings:
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", nearest is {near[0]!r}" if near else ""
            raise LabelError(f"unknown finding {name!r}{hint}; pass --findings any to take every name in the file")
    if NO_FINDING in findings and len(set(findings)) > 1:
        raise LabelError(f"{NO_FINDING!r} together with other findings in {cell!r}")
    return tuple(sorted(set(findings)))


def plain(name: str) -> str:
    """A name without case, spaces, underscores and punctuation, to compare spellings."""
    return re.sub(r"[\W_]+", "", name).lower()


def spelled_as_known(name: str, known: Collection[str]) -> Optional[str]:
    """The spelling of `name` in `known`, whatever its case, spaces or underscores; None if it is not there."""
    if name in known:
        return name
    wanted = plain(name)
    return next((finding for finding in known if plain(finding) == wanted), None)


def n_hot(
    findings: Sequence[Sequence[str]], classes: Sequence[str], unknown: Sequence[Sequence[str]] = ()
) -> np.ndarray:
    """float32 (num_samples, num_classes): 1 where the sample has the finding, NaN where nobody knows.

    unknown: of each sample the findings that are uncertain or not labelled; those that are no classes do not count.
    """
    column = {name: position for position, name in enumerate(classes)}
    labels = np.zeros((len(findings), len(classes)), dtype=np.float32)
    for row, names in enumerate(unknown):
        for name in names:
            if name in column:
                labels[row, column[name]] = np.nan
    for row, names in enumerate(findings):
        for name in names:
            labels[row, column[name]] = 1.0
    return labels


def pathologies(classes: Sequence[str]) -> List[str]:
    """The findings without "No Finding", over which the macro mean is taken."""
    return [name for name in classes if name != NO_FINDING]


MINED_LABELS = "A program mined the labels from radiology reports; no radiologist labelled the images."
_LABELLED_BY = {
    "PadChest": "Physicians labelled a quarter of the radiology reports and a program the others; nobody labelled the images.",
    "VinDr-CXR": "Radiologists labelled the images.",
    "RSNA Pneumonia": "Radiologists labelled the images.",
}


def label_source(title: Optional[str]) -> str:
    """A sentence on how the labels of a format were made, by the format's title; None is a folder of an earlier release (NIH)."""
    if title is None or title.startswith(("NIH", "CheXpert", "MIMIC")):
        return MINED_LABELS
    return _LABELLED_BY.get(title, "How the images were labelled is not recorded: labels may be wrong.")
