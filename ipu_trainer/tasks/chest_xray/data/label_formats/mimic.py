"""MIMIC-CXR-JPG (PhysioNet): labels of a study, and the images of it in other tables.

    mimic-cxr-2.0.0-chexpert.csv   subject_id,study_id,Atelectasis,Cardiomegaly,...   1, 0, -1 and blank; or -negbio.csv
    mimic-cxr-2.0.0-split.csv      dicom_id,study_id,subject_id,split                 train, validate, test
    mimic-cxr-2.0.0-metadata.csv   dicom_id,subject_id,study_id,...,ViewPosition,...
    files/p10/p10000032/s50414267/<dicom_id>.jpg

The other tables are looked for beside the labels; one of them must be there, because only they name images. A blank is read as in
CheXpert (chexpert.py). An image whose study has no labels is left out, and counted.
"""

from __future__ import annotations

import re
from typing import Dict, Iterator, Optional, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import FindingColumns, Verdict
from ipu_trainer.tasks.chest_xray.data.label_formats.chexpert import CHEXPERT_FINDINGS, DEVICES, ENOUGH
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, beside, cell

_PARTS = {"train": "train", "validate": "validation", "test": "test"}


def is_mimic(table: TableFile) -> bool:
    return (
        table.has("subject_id", "study_id")
        and not table.has("dicom_id")
        and not table.has("Path")
        and len(table.named(CHEXPERT_FINDINGS)) >= ENOUGH
    )


def read_mimic(table: TableFile, choices: LabelChoices) -> Labels:
    """Raises UserError if neither the table of the split nor that of the metadata lies beside the labels."""
    start = re.sub(r"(chexpert|negbio)\..*$", "", table.path.name)
    split, metadata = (beside(table.path, start + name) for name in ("split", "metadata"))
    if split is None and metadata is None:
        raise UserError(
            f"{table.path} has the labels of studies and no images. Put {start}split.csv or {start}metadata.csv beside it."
        )
    labels = Labels("MIMIC-CXR-JPG", table.path, iter(()))
    found = table.named(CHEXPERT_FINDINGS)
    kept = choices.kept_columns(list(found), table.path)
    labels.columns = list(kept.values())
    labels.also += [path for path in (split, metadata) if path is not None]
    columns = FindingColumns({at: name for name, at in found.items()}, kept, choices, (DEVICES,))
    images = TableFile(split or metadata or table.path)
    views = None if split is None or metadata is None else TableFile(metadata)
    labels.records = _records(table, columns, images, views, labels)
    return labels


def _records(
    table: TableFile, columns: FindingColumns, images: TableFile, views: Optional[TableFile], labels: Labels
) -> Iterator[LabelRecord]:
    subject_at, study_at = table.needed("subject_id"), table.needed("study_id")
    of_study: Dict[Tuple[str, str], Verdict] = {}
    for _, cells in table.rows():
        of_study[patient_of(cells[subject_at]), patient_of(cells[study_at])] = columns.verdict(cells)
    labels.notes += [f"of studies, {said}" for said in columns.describe()]
    view_of: Dict[str, str] = {}
    if views is not None:
        image_at, view_at = views.needed("dicom_id"), views.position("ViewPosition")
        spelled: Dict[str, str] = {}
        for _, cells in views.rows():
            view = cell(cells, view_at)
            view_of[cells[image_at].strip()] = spelled.setdefault(view, view)
    image_at, subject_at, study_at = images.needed("dicom_id"), images.needed("subject_id"), images.needed("study_id")
    split_at, view_at = images.position("split"), images.position("ViewPosition")
    nothing = Verdict((), (), False)
    for line, cells in images.rows():
        image, subject, study = cells[image_at].strip(), patient_of(cells[subject_at]), patient_of(cells[study_at])
        path = f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg"
        present, unknown, labelled, error = of_study.get((subject, study), nothing)
        if not labelled:
            labels.no_label.append(path)
            continue
        view = view_of.get(image, "") if views is not None else cell(cells, view_at)
        part = _PARTS.get(cell(cells, split_at).lower(), "")
        yield LabelRecord(line, path, present, unknown, subject, study, view=view, split=part, error=error)
