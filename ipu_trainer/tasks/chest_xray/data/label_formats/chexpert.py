"""CheXpert and CheXpert Plus (Stanford): 14 columns of 1, 0, -1 and blank; patient and study are in the path.

    Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,...
    CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Female,83,Frontal,AP,,,,1.0,,,-1.0,,,,,,1.0,

1 is present, 0 absent, -1 uncertain, and blank was not mentioned in the report. What a blank means is disputed: the
CheXpert paper (Irvin et al., AAAI 2019) counts it as negative, and most training code fills it with 0; torchxrayvision 1.5.7 keeps
it as unknown unless "No Finding" is 1, which makes the others absent, except Support Devices. The second is the default, because
nobody looked for what is not mentioned; --blank zeros is the first.

CheXpert Plus has the labels apart from its table, in JSON lines: impression_fixed.json, findings_fixed.json or report_fixed.json,
one for each part of the report that they were mined from. The first of these that is there is read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import (
    FindingColumns,
    Verdict,
    age_of,
    sex_of,
)
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, beside, cell
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING
from ipu_trainer.tasks.chest_xray.data.text_files import open_text

DEVICES = "Support Devices"
CHEXPERT_FINDINGS: Tuple[str, ...] = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", DEVICES,
)  # fmt: skip
# Columns that a table must have to be taken for CheXpert's.
ENOUGH = 7
_PARTS = {"train": "train", "valid": "validation", "val": "validation", "test": "test"}
_PLUS_LABELS = ("impression_fixed.json", "findings_fixed.json", "report_fixed.json")
_ID = re.compile(r"(?:^|/)(?P<patient>patient\d+)/(?P<study>study\d+)/")


def is_chexpert(table: TableFile) -> bool:
    return table.has("Path") and not table.has("Finding Labels") and len(table.named(CHEXPERT_FINDINGS)) >= ENOUGH


def is_chexpert_plus(table: TableFile) -> bool:
    return table.has("path_to_image", "deid_patient_id")


def read_chexpert(table: TableFile, images: Path, choices: LabelChoices) -> Labels:
    """train.csv and valid.csv lie side by side; the other one of the two is read too if the image of its first row is there."""
    tables = [table]
    name = table.path.name.split(".")[0]
    if name in _PARTS:
        for other in ("train", "valid", "test"):
            path = beside(table.path, other) if other != name else None
            more = None if path is None else TableFile(path)
            if more is not None and is_chexpert(more) and _first_image_is_there(more, images):
                tables.append(more)
    labels = Labels("CheXpert", table.path, iter(()))
    labels.last_part_is_unique = False
    labels.columns = list(choices.kept_columns(list(table.named(CHEXPERT_FINDINGS)), table.path).values())
    labels.also += [more.path for more in tables[1:]]
    labels.records = _records(tables, choices, labels)
    return labels


def read_chexpert_plus(table: TableFile, images: Path, choices: LabelChoices) -> Labels:
    labels = Labels("CheXpert Plus", table.path, iter(()))
    labels.last_part_is_unique = False
    by_image: Optional[Dict[str, Verdict]] = None
    names = list(table.named(CHEXPERT_FINDINGS))
    if len(names) < ENOUGH:
        path = _labels_of_plus(table.path)
        names, by_image, said = _read_plus_labels(path, choices)
        labels.also.append(path)
        labels.notes += said
    labels.columns = list(choices.kept_columns(names, table.path).values())
    labels.records = _records([table], choices, labels, by_image)
    return labels


def _records(
    tables: List[TableFile], choices: LabelChoices, labels: Labels, by_image: Optional[Dict[str, Verdict]] = None
) -> Iterator[LabelRecord]:
    nothing = Verdict((), (), False)
    for table in tables:
        found = table.named(CHEXPERT_FINDINGS)
        kept = choices.kept_columns(list(found), table.path) if by_image is None else {}
        columns = FindingColumns({at: name for name, at in found.items()}, kept, choices, (DEVICES,))
        path_at = table.needed("Path", "path_to_image")
        patient_at, study_at = table.position("deid_patient_id"), table.position("patient_report_date_order")
        age_at, sex_at, part_at = table.position("Age"), table.position("Sex"), table.position("split")
        view_at, side_at = table.position("AP/PA", "ap_pa"), table.position("Frontal/Lateral", "frontal_lateral")
        for line, cells in table.rows():
            path = cells[path_at].strip()
            if by_image is None:
                present, unknown, labelled, error = columns.verdict(cells)
            else:
                present, unknown, labelled, error = by_image.get(path, nothing)
            if not labelled:
                labels.no_label.append(path)
                continue
            ids = _ID.search(path.replace("\\", "/"))
            patient = patient_of(cell(cells, patient_at)) or (ids.group("patient") if ids else "")
            study = cell(cells, study_at) or (ids.group("study") if ids else "")
            folders = path.replace("\\", "/").split("/")[:-1]
            part = cell(cells, part_at).lower() or next((name for name in folders if name in _PARTS), "")
            view = cell(cells, view_at)
            yield LabelRecord(
                line,
                path,
                present,
                unknown,
                patient,
                f"{patient}/{study}" if study else "",
                age_of(cell(cells, age_at)) or None,  # 0 stands for unknown: all patients are adults
                sex_of(cell(cells, sex_at)),
                (view if view.lower() not in ("", "nan") else cell(cells, side_at)).upper(),
                split=_PARTS.get(part, ""),
                error=error,
            )
        where = f"{table.path.name}: " if len(tables) > 1 else ""
        labels.notes += [where + said for said in columns.describe()]


def _first_image_is_there(table: TableFile, images: Path) -> bool:
    _, cells = next(table.rows(), (0, None))
    parts = [] if cells is None else cells[table.needed("Path")].strip().split("/")
    return ".." not in parts and any(
        (images / "/".join(parts[start:])).is_file() for start in range(max(0, len(parts) - 1))
    )


def _labels_of_plus(table: Path) -> Path:
    for name in _PLUS_LABELS:
        found = [table.parent / name, *sorted(table.parent.glob(f"*/{name}"))]
        path = next((path for path in found if path.is_file()), None)
        if path is not None:
            return path
    raise UserError(
        f"{table} is CheXpert Plus's table, whose labels are in a file of their own. Put {', '.join(_PLUS_LABELS[:2])} or "
        f"{_PLUS_LABELS[2]} beside it, or into a folder beside it."
    )


def _read_plus_labels(path: Path, choices: LabelChoices) -> Tuple[List[str], Dict[str, Verdict], List[str]]:
    """(findings, verdicts by path_to_image, sentences for the output)"""
    names = list(CHEXPERT_FINDINGS)
    kept = choices.kept_columns(names, path)
    columns = FindingColumns(dict(enumerate(names)), kept, choices, (DEVICES,))
    verdicts: Dict[str, Verdict] = {}
    with open_text(path, "JSON lines of labels") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                values = json.loads(text)
                cells = ["" if values.get(name) is None else str(values[name]) for name in names]
                verdicts[str(values["path_to_image"])] = columns.verdict(cells)
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: no JSON object with path_to_image and findings ({error})."
                ) from error
    return names, verdicts, columns.describe()
