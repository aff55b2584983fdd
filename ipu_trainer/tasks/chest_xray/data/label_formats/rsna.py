"""RSNA Pneumonia Detection Challenge (Kaggle): a row a box, Target 1 for a lung opacity suspicious for pneumonia.

    stage_2_train_labels.csv           patientId,x,y,width,height,Target
    stage_2_detailed_class_info.csv    patientId,class           Normal; No Lung Opacity / Not Normal; Lung Opacity
    ..._dicom_headers.csv              ...,Filename,...,PatientAge,PatientID,...,PatientSex,...,ViewPosition

The finding is called Pneumonia, as the challenge does. The two tables below the first are read where they lie beside it; without
the classes nobody knows whether an image without pneumonia is healthy. patientId is the id of the image: the patients of NIH's
data set, from which the images come, have several each, so patients are unknown.
"""

from __future__ import annotations

from typing import Dict, Iterator, Optional, Tuple

from ipu_trainer.tasks.chest_xray.data.label_formats.cells import age_of, sex_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, beside, cell, is_table
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING

FINDING = "Pneumonia"


def is_rsna(table: TableFile) -> bool:
    return table.has("patientId", "Target", "x", "y", "width", "height")


def read_rsna(table: TableFile, choices: LabelChoices) -> Labels:
    labels = Labels("RSNA Pneumonia", table.path, iter(()), has_patients=False)
    headers = next((path for path in sorted(table.path.parent.glob("*dicom_headers.csv*")) if is_table(path)), None)
    classes = beside(table.path, "stage_2_detailed_class_info")
    labels.also += [path for path in (headers, classes) if path is not None]
    names = (FINDING, *((NO_FINDING,) if classes is not None else ()))
    kept = choices.kept_columns(names, table.path)
    labels.columns = list(kept.values())
    others = [None if path is None else TableFile(path) for path in (headers, classes)]
    labels.records = _records(table, others[0], others[1], kept, labels)
    return labels


def _records(
    table: TableFile,
    headers: Optional[TableFile],
    classes: Optional[TableFile],
    kept: Dict[str, str],
    labels: Labels,
) -> Iterator[LabelRecord]:
    about: Dict[str, Tuple[Optional[int], str, str]] = {}
    if headers is not None:
        image_at, age_at = headers.needed("PatientID"), headers.position("PatientAge")
        sex_at, view_at = headers.position("PatientSex"), headers.position("ViewPosition")
        for _, cells in headers.rows():
            about[cells[image_at].strip()] = (
                age_of(cell(cells, age_at)),
                sex_of(cell(cells, sex_at)),
                cell(cells, view_at).upper(),
            )
    healthy = set()
    if classes is not None:
        image_at, class_at = classes.needed("patientId"), classes.needed("class")
        healthy = {cells[image_at].strip() for _, cells in classes.rows() if cells[class_at].strip() == "Normal"}
    image_at, target_at = table.needed("patientId"), table.needed("Target")
    targets: Dict[str, Tuple[int, str]] = {}
    for line, cells in table.rows():
        image, target = cells[image_at].strip(), cells[target_at].strip()
        if targets.setdefault(image, (line, target))[1] != target:
            targets[image] = (line, "0 and 1")
    for image, (line, target) in targets.items():
        names = (FINDING,) if target == "1" else (NO_FINDING,) if image in healthy else ()
        age, sex, view = about.get(image, (None, "", ""))
        error = "" if target in ("0", "1") else f"Target {target!r}: one of 0 and 1 is read"
        findings = tuple(kept[name] for name in names if name in kept)
        yield LabelRecord(line, image, findings, age=age, sex=sex, view=view, error=error)
    labels.notes.append(f"{len(targets):,} images; patientId is the image's id, so patients are unknown")
