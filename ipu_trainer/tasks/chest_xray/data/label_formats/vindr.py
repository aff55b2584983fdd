"""VinDr-CXR and Kaggle's VinBigData: three radiologists read each image of the training part.

    image_labels_train.csv   image_id,rad_id,Aortic enlargement,Atelectasis,...,No finding            a row a reader, 0 and 1
    annotations_train.csv    image_id,rad_id,class_name,x_min,y_min,x_max,y_max                       a row a box
    train.csv (Kaggle)       image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max              a row a box
    image_labels_test.csv, annotations_test.csv: the consensus of five readers, without rad_id

A finding is present if more than half of an image's readers report it, absent if fewer do, and unknown if just half do (which
three readers cannot). There are no patient ids. Boxes are not kept: they are in pixels of images whose sizes differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

from ipu_trainer.tasks.chest_xray.data.finding_names import same_finding
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import VALUES
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices, LabelRecord, Labels
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile, beside, cell
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING

VINDR_FINDINGS: Tuple[str, ...] = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion",
    "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
_ENOUGH = 7


class _Votes:
    """Of one image: the line of its first row, its readers, and the readers of each finding."""

    def __init__(self, line: int, part: str) -> None:
        self.line, self.part, self.error = line, part, ""
        self.readers: Set[str] = set()
        self.of: Dict[str, Set[str]] = {}


def is_vindr(table: TableFile) -> bool:
    return table.has("image_id") and (table.has("class_name", "x_min") or len(table.named(VINDR_FINDINGS)) >= _ENOUGH)


def read_vindr(table: TableFile, images: Path, choices: LabelChoices) -> Labels:
    """The training and the test part are read together where both tables are there and images has the folders train and test."""
    tables = [table]
    name = table.path.name.split(".")[0]
    for part, other in (("train", "test"), ("test", "train")):
        path = beside(table.path, name.replace(part, other)) if part in name else None
        if path is not None and (images / other).is_dir():
            more = TableFile(path)
            tables += [more] if is_vindr(more) else []
    labels = Labels("VinDr-CXR", table.path, iter(()), has_patients=False)
    labels.also += [more.path for more in tables[1:]]
    labels.records = _records(tables, choices, labels)
    return labels


def _records(tables: List[TableFile], choices: LabelChoices, labels: Labels) -> Iterator[LabelRecord]:
    images: Dict[str, _Votes] = {}
    seen: Set[str] = set()
    for table in tables:
        name = table.path.name.split(".")[0]
        part = "" if len(tables) == 1 else "test" if "test" in name else "train"
        seen |= _count(table, part, images)
    names = sorted(seen)
    kept = choices.kept_columns(names, labels.table)
    labels.columns = list(kept.values())
    disagreed = tied = unsettled = 0
    for image, votes in images.items():
        present: List[str] = []
        unknown: List[str] = []
        healthy = False
        for name, readers in votes.of.items():
            share = 2 * len(readers) - len(votes.readers)
            disagreed += len(readers) < len(votes.readers)
            tied += share == 0
            healthy = healthy or (share > 0 and same_finding(name, (NO_FINDING,)) is not None)
            if name in kept and share >= 0:
                (present if share > 0 else unknown).append(kept[name])
        unsettled += not healthy and not any(
            2 * len(readers) >= len(votes.readers) for name, readers in votes.of.items()
        )
        error = votes.error
        if healthy and len(present) > (NO_FINDING in present):
            error = f"{NO_FINDING!r} together with {', '.join(sorted(set(present) - {NO_FINDING}))}"
        yield LabelRecord(
            votes.line, image, tuple(sorted(present)), tuple(sorted(unknown)), split=votes.part, error=error
        )
    numbers = sorted({len(votes.readers) for votes in images.values()})
    labels.notes.append(
        f"{len(images):,} images, each of {' or '.join(map(str, numbers))} readers: more than half of them decide. They disagree "
        f"on {disagreed:,} findings of images; {tied:,} ties are unknown. In {unsettled:,} images no finding has a majority and "
        f"neither has {NO_FINDING!r}: all findings are absent."
    )


def _count(table: TableFile, part: str, images: Dict[str, _Votes]) -> Set[str]:
    """Add the votes of a table; returns the findings that it knows."""
    image_at, reader_at = table.needed("image_id"), table.position("rad_id")
    class_at = table.position("class_name")
    known: Dict[str, str] = {}
    columns = {at: name for name, at in table.named((*VINDR_FINDINGS, "Other disease")).items()}
    columns = {at: same_finding(name, VINDR_FINDINGS) or name for at, name in columns.items()}
    for line, cells in table.rows():
        image = cells[image_at].strip()
        votes = images.get(image)
        if votes is None:
            votes = images[image] = _Votes(line, part)
        reader = cell(cells, reader_at)
        votes.readers.add(reader)
        if class_at is not None:
            written = cells[class_at].strip()
            name = known.setdefault(written, same_finding(written, VINDR_FINDINGS) or written)
            votes.of.setdefault(name, set()).add(reader)
            if not written:
                votes.error = f"line {line} has no class_name"
            continue
        for at, name in columns.items():
            value = VALUES.get(cells[at].strip().lower())
            if value not in (0, 1):
                votes.error = f"{cells[at]!r} in the column {name}, line {line}: only 0 and 1 are read"
            elif value:
                votes.of.setdefault(name, set()).add(reader)
    return set(known.values()) if class_at is not None else set(columns.values())
