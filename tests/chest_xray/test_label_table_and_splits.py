import csv
import gzip
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ipu_trainer.tasks.chest_xray.data.label_table import read_label_table
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, LabelError, label_source, n_hot, parse_findings
from ipu_trainer.tasks.chest_xray.data.splits import (
    SplitError,
    fill_empty_parts,
    official_split,
    patient_position,
    refuse_empty_training,
    shared_patients,
    split_by_patient,
    split_random_images,
)

# Counts of Data_Entry_2017_v2020.csv, as the NIH states them.
NIH_COUNTS = {
    "Atelectasis": 11559,
    "Cardiomegaly": 2776,
    "Consolidation": 4667,
    "Edema": 2303,
    "Effusion": 13317,
    "Emphysema": 2516,
    "Fibrosis": 1686,
    "Hernia": 227,
    "Infiltration": 19894,
    "Mass": 5782,
    "No Finding": 60361,
    "Nodule": 6331,
    "Pleural_Thickening": 3385,
    "Pneumonia": 1431,
    "Pneumothorax": 5302,
}


def write_table(path, header, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_images(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)


OLD = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"]
NEW = [*OLD[:5], "Patient Sex", "View Position", "OriginalImage[Width", "Height]"]


@pytest.mark.parametrize("name, header", [("old.csv", OLD), ("new.csv", NEW), ("new.csv.gz", NEW)])
def test_both_generations_of_the_csv_are_read(tmp_path, name, header):
    write_images(tmp_path / "images", ["a.png", "b.png"])
    rows = [["b.png", "Mass|Edema", "3", "00007", "057Y", "F", "PA", "1", "2"][: len(header)]]
    rows.append(["a.png", "No Finding", "0", "8", "414", "M", "AP", "1", "2"][: len(header)])
    found = read_label_table(write_table(tmp_path / name, header, rows), tmp_path / "images")
    assert [row.path for row in found.rows] == ["a.png", "b.png"]
    first, second = found.rows
    assert (second.findings, second.patient_id, second.age, second.sex, second.view) == (
        ("Edema", "Mass"),
        "7",
        57,
        "F",
        "PA",
    )
    assert second.follow_up == 3
    assert first.age is None and found.num_unknown_ages == 1
    assert found.rejections == ()


def test_images_are_found_in_the_folders_that_nih_ships(tmp_path):
    write_images(tmp_path / "images", ["images_001/images/a.png", "images_012/images/b.png"])
    rows = [["a.png", "Mass", "0", "1", "5", "F", "PA"], ["b.png", "Mass", "0", "2", "5", "F", "PA"]]
    found = read_label_table(write_table(tmp_path / "t.csv", OLD, rows), tmp_path / "images")
    assert [row.path for row in found.rows] == ["images_001/images/a.png", "images_012/images/b.png"]


def test_a_name_in_another_folder_finds_the_file_wherever_it_lies(tmp_path):
    write_images(tmp_path / "images", ["flat.png", "deep/inner.png", "twice.png", "deep/twice.png"])
    names = ["elsewhere/flat.png", "inner.png", "elsewhere/twice.png"]
    table = write_table(tmp_path / "labels.csv", NEW, [[name, "Mass", 0, 1, "60", "M", "PA", 1, 1] for name in names])
    found = read_label_table(table, tmp_path / "images")
    assert [row.path for row in found.rows] == ["deep/inner.png", "flat.png"]
    assert "ambiguous: 2 files" in {rejection.line: rejection.reason for rejection in found.rejections}[4]


def test_everything_wrong_is_found_in_one_pass_with_line_and_reason(tmp_path):
    write_images(
        tmp_path / "images", ["ok.png", "orphan.png", "twice.png", "odd.png", "empty.png", "x/same.png", "y/same.png"]
    )
    write_images(tmp_path, ["outside.png"])
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    lines = [
        ("ok.png", "Mass", "1"),
        ("missing.png", "Mass", "1"),
        ("twice.png", "Mass", "1"),
        ("twice.png", "Edema", "1"),
        ("odd.png", "Pleural Thickning", "1"),
        ("empty.png", " ", "1"),
        ("../outside.png", "Mass", "1"),
        ("/etc/passwd.png", "Mass", "1"),
        ("link.png", "Mass", "1"),
        ("same.png", "Mass", "1"),
        ("ok.png", "No Finding|Mass", "1"),
    ]
    table = [[name, labels, "0", patient, "5", "F", "PA"] for name, labels, patient in lines]
    found = read_label_table(write_table(tmp_path / "t.csv", OLD, table), tmp_path / "images")
    reasons = {(item.line, item.file): item.reason for item in found.rejections}
    expected = {
        (3, "missing.png"): "row without image",
        (5, "twice.png"): "duplicate row: line 4",
        (6, "odd.png"): "nearest is 'Pleural_Thickening'",
        (7, "empty.png"): "empty label",
        (8, "../outside.png"): "leaves the image folder",
        (9, "/etc/passwd.png"): "leaves the image folder",
        (10, "link.png"): "symbolic link",
        (11, "same.png"): "ambiguous: 2 files",
        (12, "ok.png"): "duplicate row: line 2",
        (0, "orphan.png"): "image without row",
        (0, "x/same.png"): "image without row",
        (0, "y/same.png"): "image without row",
        (0, "link.png"): "image without row",
    }
    assert set(reasons) == set(expected)
    for key, text in expected.items():
        assert text in reasons[key]
    assert [row.path for row in found.rows] == ["ok.png", "twice.png"]


def test_only_present_leaves_rows_without_image_out_and_counts_them(tmp_path):
    write_images(tmp_path / "images", ["a.png"])
    rows = [["a.png", "Mass", "0", "1", "5", "F", "PA"], ["b.png", "Mass", "0", "2", "5", "F", "PA"]]
    found = read_label_table(write_table(tmp_path / "t.csv", OLD, rows), tmp_path / "images", only_present=True)
    assert (len(found.rows), found.num_rows_without_image, found.rejections) == (1, 1, ())


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"a,b\n1,2\n", "no column for file_name"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_a_file_that_is_no_label_table_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_label_table(tmp_path / "t.csv", tmp_path)


def test_labels_are_n_hot_over_sorted_findings():
    assert parse_findings("Mass| Edema |Mass") == ("Edema", "Mass")
    assert n_hot([("Mass",), ("Edema", "Mass")], ["Edema", "Mass"]).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(LabelError, match="together with"):
        parse_findings("No Finding|Mass")
    assert parse_findings("Anything", known=()) == ("Anything",)


patients = st.lists(st.integers(0, 40).map(str), min_size=1, max_size=200)


@given(patients, st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 5))
def test_no_patient_is_in_two_splits_and_more_data_moves_nobody(people, validation, test, seed):
    splits = split_by_patient(people, validation, test, seed)
    where = {}
    for person, split in zip(people, splits):
        assert where.setdefault(person, split) == split
    more = split_by_patient([*people, "new", "newer"], validation, test, seed)
    assert more[: len(people)] == splits
    assert all(count == 0 for count in shared_patients(splits, people).values())


@given(patients, st.integers(0, 5))
def test_validation_is_carved_out_of_train_val_by_patient(people, seed):
    names = [f"{position}.png" for position in range(len(people))]
    test_side = {person for person in people if patient_position("side" + person) < 0.3}
    in_test = {name for name, person in zip(names, people) if person in test_side}
    splits = official_split(names, people, set(names) - in_test, in_test, 0.2, seed)
    assert {name for name, split in zip(names, splits) if split == "test"} == in_test
    assert all(count == 0 for count in shared_patients(splits, people).values())


def test_official_lists_that_do_not_belong_to_the_data_are_refused():
    with pytest.raises(SplitError, match="neither split list"):
        official_split(["a"], ["1"], {"b"}, {"c"})
    with pytest.raises(SplitError, match="both split lists"):
        official_split(["a"], ["1"], {"a"}, {"a"})
    with pytest.raises(SplitError, match="patient 1 has images in both"):
        official_split(["a", "b"], ["1", "1"], {"a"}, {"b"})


def test_a_random_image_split_leaves_patients_on_both_sides():
    people = [str(position // 10) for position in range(1000)]
    names = [str(position) for position in range(1000)]
    shared = shared_patients(split_random_images(names, 0.05, 0.0), people)
    assert shared["validation"] > 0.9 * sum(
        split_random_images(names, 0.05, 0.0)[i] == "validation" for i in range(1000)
    )


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(0, 50))
def test_small_data_have_each_part_that_they_are_asked_for(people, seed):
    groups = [str(person) for person in people]
    fractions = {"validation": 0.1, "test": 0.1}
    before = split_by_patient(groups, 0.1, 0.1, seed)
    splits = list(before)
    filled = fill_empty_parts(splits, groups, fractions, seed)
    assert not any(shared_patients(splits, groups).values())
    assert set(filled) == {part for part in fractions if part in splits and part not in before}
    if not filled:
        assert splits == before or "train" not in before
    empty = [part for part in fractions if part not in before]
    if len({group for group, split in zip(groups, before) if split == "train"}) > len(empty):
        assert {"train", "validation", "test"} <= set(splits)
    assert fill_empty_parts(["train"] * 9, list("aabbccdde"), {"validation": 0.0, "test": 0.0}, seed) == []


def test_the_source_of_labels_is_that_of_their_format():
    assert label_source(None) == label_source("NIH ChestX-ray14") == label_source("CheXpert Plus")
    assert label_source("VinDr-CXR") == "Radiologists labelled the images."
    assert "not recorded" in label_source("imagefolder")


def test_an_empty_training_split_is_refused():
    with pytest.raises(SplitError, match="leaves no training image"):
        refuse_empty_training(["test"], "by-patient", 1)


@pytest.fixture(scope="module")
def official(nih_sample):
    with gzip.open(nih_sample / "official" / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    lists = [
        set((nih_sample / "official" / name).read_text().split()) for name in ("train_val_list.txt", "test_list.txt")
    ]
    return rows, lists


def test_counts_of_the_official_csv_are_those_of_nih(official):
    rows, _ = official
    counts = Counter(name for row in rows for name in parse_findings(row["Finding Labels"]))
    assert dict(counts) == NIH_COUNTS
    assert tuple(sorted(counts)) == NIH_FINDINGS


def test_official_split_has_the_official_sizes_and_shares_no_patient(official):
    rows, (train_val, test) = official
    names = [row["Image Index"] for row in rows]
    people = [row["Patient ID"] for row in rows]
    splits = official_split(names, people, train_val, test)
    counts = Counter(splits)
    assert counts["test"] == 25596
    assert counts["train"] + counts["validation"] == 86524
    assert 0.08 < counts["validation"] / 86524 < 0.12
    assert all(count == 0 for count in shared_patients(splits, people).values())


def test_positions_are_the_same_on_every_machine():
    assert [round(patient_position(name), 6) for name in ("1", "2", "30805")] == [0.298689, 0.299272, 0.828352]
