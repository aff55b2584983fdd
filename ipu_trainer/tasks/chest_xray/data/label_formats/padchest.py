"""PadChest (BIMCV): lists of labels in strings, with patients, studies, birth years and projections; 16-bit PNGs.

    ,ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,...,Projection,...,Labels,...
    0,2053...k6ga29.png,0,20140915,2053...,8398...,1930.0,F,...,PA,...,"['pleural effusion', ' cardiomegaly']",...

Spaces around labels are dropped: 350 spellings are then 193 labels and the empty string. `normal` is "No Finding"; where other
findings stand beside it, they count. `unchanged`, `suboptimal study` and `exclude` are remarks and no findings: an image with
nothing else has no label and is left out, as one with an empty list or the cell nan is. --findings may name a remark to keep it.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional, Set, Tuple

from ipu_trainer.tasks.chest_xray.data.label_formats.cells import (
    age_of,
    is_no_finding,
    sex_of,
    whole_number,
)
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import (
    LabelChoices,
    LabelRecord,
    Labels,
    refuse_missing,
)
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, cell
from ipu_trainer.tasks.chest_xray.data.label_formats.written_labels import list_in_text
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING

REMARKS = frozenset({"unchanged", "suboptimal study", "exclude"})


def is_padchest(table: TableFile) -> bool:
    return table.has("ImageID", "PatientID", "StudyID", "Labels")


def read_padchest(table: TableFile, choices: LabelChoices) -> Labels:
    labels = Labels("PadChest", table.path, iter(()))
    labels.records = _records(table, choices, labels)
    return labels


def _records(table: TableFile, choices: LabelChoices, labels: Labels) -> Iterator[LabelRecord]:
    image_at, labels_at = table.needed("ImageID"), table.needed("Labels")
    patient_at, study_at = table.needed("PatientID"), table.needed("StudyID")
    birth_at, date_at = table.position("PatientBirth"), table.position("StudyDate_DICOM")
    sex_at, view_at = table.position("PatientSex_DICOM"), table.position("Projection", "ViewPosition_DICOM")
    lists: Dict[str, Optional[Tuple[str, ...]]] = {}
    shared: Dict[Tuple[str, ...], Tuple[str, ...]] = {}
    stored: Dict[str, Optional[str]] = {}
    spellings: Set[str] = set()
    empty = not_listed = healthy_and_ill = remarks = 0
    for line, cells in table.rows():
        text = cells[labels_at].strip()
        if text not in lists:
            lists[text] = written_list(text)
        written = lists[text]
        if text.lower() in ("nan", ""):
            not_listed += 1
            labels.no_label.append(cells[image_at].strip())
            continue
        present: List[str] = []
        said = False
        for spelling in written or ():
            spellings.add(spelling)
            name = spelling.strip()
            empty += not name
            if name not in stored:
                stored[name] = choices.kept(name) if name and (choices.findings or name not in REMARKS) else None
            finding = stored[name]
            said = said or finding is not None or bool(name and name not in REMARKS)
            if finding is not None:
                present.append(finding)
        if written is not None and not said:
            remarks += 1
            labels.no_label.append(cells[image_at].strip())
            continue
        others = {name.strip() for name in written or ()} - REMARKS - {""}
        healthy = {name for name in others if is_no_finding(name)} if NO_FINDING in present else set()
        if healthy and len(others) > len(healthy):
            healthy_and_ill += 1
            present = [name for name in present if name != NO_FINDING]
        findings = tuple(sorted(set(present)))
        date, birth = whole_number(cell(cells, date_at)), whole_number(cell(cells, birth_at))
        yield LabelRecord(
            line,
            cells[image_at].strip(),
            shared.setdefault(findings, findings),
            (),
            patient_of(cells[patient_at]),
            patient_of(cells[study_at]),
            None if date is None or birth is None else age_of(str(date // 10000 - birth)),
            sex_of(cell(cells, sex_at)),
            cell(cells, view_at).upper(),
            error="" if written is not None else f"{text[:60]!r} is no list of labels such as ['normal']",
        )
    refuse_missing(choices.findings or (), [name for name in stored.values() if name], sorted(stored), labels.table)
    labels.columns = sorted({name for name in stored.values() if name})
    labels.notes += [
        f"{len(spellings):,} spellings of {len({name.strip() for name in spellings}):,} labels once spaces are dropped, with "
        f"{empty:,} empty strings",
        f"{not_listed:,} cells without a list, and {remarks:,} with remarks or nothing alone, have no label",
        f"{healthy_and_ill:,} images have other labels beside 'normal', which count",
    ]


def written_list(text: str) -> Optional[Tuple[str, ...]]:
    """("normal", " nodule") of "['normal', ' nodule']"; None if it is no list of strings."""
    found = list_in_text(text)
    return tuple(found) if found is not None and all(isinstance(name, str) for name in found) else None
