"""What other data sets call the findings: a table of synonyms, and the findings that two data sets share.

A run that was trained on one data set is evaluated on another over the findings that both have. Names are compared without case,
spaces and punctuation (`labels.plain`), then by SYNONYMS. A name that the table does not know is a finding of its own: nothing is
matched by similarity.
"""

from __future__ import annotations

from typing import Dict, Optional, Sequence, Tuple

from ipu_trainer.tasks.chest_xray.data.labels import plain

# The name that NIH uses, else the most common one -> other names of the same finding.
SYNONYMS: Dict[str, Tuple[str, ...]] = {
    "Effusion": ("Pleural Effusion",),
    "Pleural_Thickening": ("Pleural Thickening",),
    "Mass": ("Lung Mass",),
    "No Finding": ("Normal", "No findings"),
}

_PLAIN = {plain(name): plain(known) for known, others in SYNONYMS.items() for name in (known, *others)}


def same_finding(name: str, findings: Sequence[str]) -> Optional[str]:
    """The entry of findings that is the finding `name`, in whatever spelling or synonym; None if there is none."""
    if name in findings:
        return name
    wanted = _key(name)
    return next((finding for finding in findings if _key(finding) == wanted), None)


def _key(name: str) -> str:
    return _PLAIN.get(plain(name), plain(name))
