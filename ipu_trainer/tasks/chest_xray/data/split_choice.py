"""Which split a data set gets: the official lists, the one that it ships with, one by patient, or, without patients, by image."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from ipu_trainer.tasks.chest_xray.data.label_table import Row
from ipu_trainer.tasks.chest_xray.data.splits import (
    SPLITS,
    SplitError,
    SplitList,
    check_fraction,
    fill_empty_parts,
    official_split,
    patient_position,
    refuse_empty_training,
    split_by_patient,
    split_random_images,
)


class SplitChoice(NamedTuple):
    """splits: of each row. method: as in the manifest. notes: sentences for the output."""

    splits: List[str]
    method: str
    notes: List[str]


def choose_split(
    rows: Sequence[Row],
    wanted: Optional[str],
    lists: Optional[Tuple[SplitList, SplitList]] = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> SplitChoice:
    """The split that is wanted, or else the best that the rows have.

    Raises SplitError if the wanted one needs patients or parts that the data set does not name, if a patient is on both sides of a
    split that is given, or if no image is left for training.
    """
    method = wanted or _best(rows, lists)
    notes: List[str] = []
    groups = [row.group for row in rows]
    if method == "official":
        assert lists is not None
        paths, patients = [row.path for row in rows], [row.patient_id or row.group for row in rows]
        splits = official_split(paths, patients, lists[0], lists[1], validation_fraction, seed)
    elif method == "given":
        check_fraction("validation_fraction + test_fraction", validation_fraction + test_fraction)
        splits, notes = _given(rows, groups, validation_fraction, test_fraction, seed)
    elif method == "random-images":
        names = [row.path.rsplit("/", 1)[-1] for row in rows]
        splits = split_random_images(names, validation_fraction, test_fraction, seed)
    else:
        _refuse_without_ids(rows, method)
        splits = split_by_patient(groups, validation_fraction, test_fraction, seed)
        filled = fill_empty_parts(splits, groups, {"validation": validation_fraction, "test": test_fraction}, seed)
        notes += [f"few images: one of training's became the {part} part, which was empty" for part in filled]
    if rows and not any(row.patient_id for row in rows):
        method = "given-images" if method == "given" else method
        kept = "images of one study are together" if any(row.study_id for row in rows) else "each image is on its own"
        notes.append(
            f"no patient ids: {kept}, and a patient may be on both sides of the split, so scores may be too optimistic"
        )
    refuse_empty_training(splits, method, len(set(groups)))
    return SplitChoice(splits, method, notes)


def _best(rows: Sequence[Row], lists: Optional[Tuple[SplitList, SplitList]]) -> str:
    if lists is not None:
        return "official"
    if len({row.split for row in rows if row.split}) > 1:
        return "given"
    if not rows or any(row.patient_id for row in rows):
        return "by-patient"
    return "by-study" if any(row.study_id for row in rows) else "by-image"


def _refuse_without_ids(rows: Sequence[Row], method: str) -> None:
    has_patients, has_studies = any(row.patient_id for row in rows), any(row.study_id for row in rows)
    if rows and method == "by-patient" and not has_patients:
        other = "by-study" if has_studies else "by-image"
        raise SplitError(f"--split by-patient: this data set has no patient ids. Use --split {other}.")
    if method == "by-study" and not has_studies:
        raise SplitError("--split by-study: this data set has no study ids. Use --split by-patient or by-image.")
    if method in ("by-image", "by-study") and has_patients:
        raise SplitError(
            f"--split {method} is for data sets without patient ids, and this one has them. Use --split by-patient, or "
            "random-images to see what a split without them does."
        )


def _given(
    rows: Sequence[Row], groups: Sequence[str], validation_fraction: float, test_fraction: float, seed: int
) -> Tuple[List[str], List[str]]:
    without = sum(not row.split for row in rows)
    if without:
        raise SplitError(
            f"--split given: {without:,} of {len(rows):,} images are in no part that the data set names. Use --split by-patient."
        )
    for what, ids in (("patients", groups), ("studies", [row.study_id for row in rows])):
        shared = _on_both_sides(rows, ids)
        if shared:
            raise SplitError(
                f"{len(shared):,} {what} have images in several parts of the split that the data set gives, such as {min(shared)}: "
                "its scores would be too optimistic. Use --split by-patient, which makes a split of its own."
            )
    found = {row.split for row in rows}
    cut = {"validation": validation_fraction, "test": test_fraction}
    cut = {part: fraction for part, fraction in cut.items() if part not in found}
    splits = [
        _cut(row.split, patient_position(group, seed), cut) if row.split == "train" else row.split
        for row, group in zip(rows, groups)
    ]
    parts = ", ".join(part for part in SPLITS if part in found)
    notes = [f"split: given by the data set ({parts})"]
    what = "patients" if any(row.patient_id for row in rows) else "images"
    notes += [
        f"no {part} part is given: {fraction:.0%} of the {what} in train become it" for part, fraction in cut.items()
    ]
    return splits, notes


def _on_both_sides(rows: Sequence[Row], ids: Sequence[str]) -> Set[str]:
    first: Dict[str, str] = {}
    return {name for row, name in zip(rows, ids) if name and first.setdefault(name, row.split) != row.split}


def _cut(part: str, position: float, cut: Dict[str, float]) -> str:
    """As split_by_patient: validation from below, test from above."""
    if position < cut.get("validation", 0.0):
        return "validation"
    return "test" if position >= 1.0 - cut.get("test", 0.0) else part
