"""What other data sets call the findings: a table of synonyms, and the findings that two data sets share.

A run that was trained on one data set is evaluated on another over the findings that both have. Names are compared without case,
spaces and punctuation (`labels.plain`), then by SYNONYMS. A name that the table does not know is a finding of its own: nothing is
matched by similarity, and a part of a finding is not the whole ("Rib fracture" is no "Fracture", "laminar atelectasis" no
"Atelectasis").
"""

from __future__ import annotations

from typing import Dict, Optional, Sequence, Tuple

from ipu_trainer.tasks.chest_xray.data.labels import plain

# The name that NIH uses, else the most common one -> other names of the same finding, and who uses them. Names that differ in
# case, spaces or underscores alone need no entry: PadChest's "pneumothorax", VinDr-CXR's "Pleural thickening".
SYNONYMS: Dict[str, Tuple[str, ...]] = {
    "Effusion": ("Pleural Effusion",),  # CheXpert, MIMIC-CXR, VinDr-CXR, PadChest
    "Edema": ("Pulmonary edema", "Lung edema"),  # PadChest
    "Fibrosis": ("Pulmonary fibrosis", "Lung fibrosis"),  # VinDr-CXR, PadChest
    "Hernia": ("Hiatal hernia", "Hiatus hernia"),  # PadChest; NIH's are hiatal ones
    "Infiltration": ("Infiltrate", "Infiltrates"),  # NIH's boxes; PadChest
    "Mass": ("Lung Mass", "Pulmonary mass"),  # PadChest
    "Nodule": ("Lung nodule", "Pulmonary nodule"),
    "Pneumothorax": ("Pneumothoraces",),
    "Pleural_Thickening": ("Pleural Thickening",),  # VinDr-CXR, PadChest
    "No Finding": ("Normal", "No findings"),  # PadChest and RSNA; VinDr-CXR writes "No finding"
    "Lung Opacity": ("Airspace Opacity", "Pulmonary opacity"),  # CheXpert's reports
    "Enlarged Cardiomediastinum": ("Enlarged cardiomediastinal silhouette",),
    "Support Devices": ("Support device",),
    "Aortic enlargement": ("Enlarged aorta",),  # VinDr-CXR
    "ILD": ("Interstitial lung disease",),  # VinDr-CXR
    "COPD": ("COPD signs", "Chronic obstructive pulmonary disease"),  # PadChest
    "Enlarged PA": ("Pulmonary artery enlargement",),  # VinDr-CXR, PadChest
    "Nodule/Mass": ("Nodule or mass",),  # VinDr-CXR: neither Nodule nor Mass alone
    "Lung tumor": ("Lung tumour",),
    "Other diseases": ("Other disease",),  # VinDr-CXR's test part
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
