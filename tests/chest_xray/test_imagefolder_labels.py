"""Image folders with metadata and Hugging Face data sets: labels in every form, their patients, and the splits that they ship."""

import csv
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ipu_trainer.cli import main
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.image_folder import ImageFolder
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices
from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import read_labels
from ipu_trainer.tasks.chest_xray.data.label_formats.split_names import part_named, part_of_path
from ipu_trainer.tasks.chest_xray.data.label_formats.written_labels import as_list
from ipu_trainer.tasks.chest_xray.data.label_table import Row, match_images
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, NO_FINDING
from ipu_trainer.tasks.chest_xray.data.prepare import prepare
from ipu_trainer.tasks.chest_xray.data.prepare_settings import PrepareSettings
from ipu_trainer.tasks.chest_xray.data.split_choice import choose_split
from ipu_trainer.tasks.output_guard import MARKER

NAMES = [f"film_{number:02d}.png" for number in range(12)]
FINDINGS = [("Edema",), ("Effusion", "Mass"), (NO_FINDING,)] * 4


def film(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 20), dtype=np.uint8))


def images(folder, names=NAMES):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        film(number).save(folder / name)
    return folder


def n_hot_of(findings, names=NIH_FINDINGS):
    return [float(name in findings) for name in names]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(folder, csv_path=None, wanted="auto", **choices):
    return match_images(read_labels(csv_path, folder, LabelChoices(**choices), wanted), ImageFolder(folder))


def findings_of(found):
    assert found.rejections == ()
    return [row.findings for row in found.rows]


FORMS = {
    "numbers": lambda folder: jsonl(
        folder / "metadata.jsonl", [{"file_name": n, "labels": n_hot_of(f)} for n, f in zip(NAMES, FINDINGS)]
    ),
    "names": lambda folder: jsonl(
        folder / "metadata.jsonl", [{"file_name": n, "labels": list(f)} for n, f in zip(NAMES, FINDINGS)]
    ),
    "one text": lambda folder: table(
        folder / "metadata.csv", ["file_name", "labels"], [(n, "|".join(f)) for n, f in zip(NAMES, FINDINGS)]
    ),
    "numbers in a cell": lambda folder: table(
        folder / "metadata.csv", ["file_name", "labels"], [(n, json.dumps(n_hot_of(f))) for n, f in zip(NAMES, FINDINGS)]
    ),
    "numbers of numpy in a cell": lambda folder: table(
        folder / "metadata.csv", ["file_name", "labels"], [(n, str(np.array(n_hot_of(f)))) for n, f in zip(NAMES, FINDINGS)]
    ),
    "names of numpy in a cell": lambda folder: table(
        folder / "metadata.csv", ["file_name", "labels"], [(n, str(np.array(f))) for n, f in zip(NAMES, FINDINGS)]
    ),
    "names in a cell": lambda folder: table(
        folder / "metadata.csv", ["file_name", "labels"], [(n, str(list(f))) for n, f in zip(NAMES, FINDINGS)]
    ),
    "a column a finding": lambda folder: table(
        folder / "metadata.csv", ["file_name", "Edema", "Effusion", "Mass", "width"],
        [(n, *(int(name in f) for name in ("Edema", "Effusion", "Mass")), 100 + i) for i, (n, f) in enumerate(zip(NAMES, FINDINGS))],
    ),
    "a column a finding in JSON": lambda folder: jsonl(
        folder / "metadata.jsonl",
        [{"file_name": n, **{name: name in f for name in ("Edema", "Effusion", "Mass")}} for n, f in zip(NAMES, FINDINGS)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_labels_are_read_in_every_form(tmp_path, form):
    folder = images(tmp_path)
    FORMS[form](folder)
    found = read(folder)
    assert findings_of(found) == FINDINGS
    assert not found.labels.has_patients and {row.group for row in found.rows} == {f"image:{name}" for name in NAMES}


def test_the_tutorials_folder_is_prepared_with_images_and_output_alone(tmp_path, capsys):
    folder = images(tmp_path / "images")
    FORMS["numbers"](folder)
    words = ["prepare", "chest-xray", "--images", str(folder), "--output", str(tmp_path / "out"), "--size", "16"]
    assert main([*words, "--workers", "1", "--validation_fraction", "0.3"]) == 0
    said = capsys.readouterr().out
    assert f"format: imagefolder (columns file_name, labels), read from {folder / 'metadata.jsonl'}" in said
    assert "NIH's fifteen in alphabetical order, as Graphcore's tutorial wrote them: Atelectasis, Cardiomegaly" in said
    assert "no patient ids: each image is on its own, and a patient may be on both sides of the split" in said
    assert "never positive, so left out: Atelectasis" in said and "\npatients" not in said
    data = load_prepared(tmp_path / "out")
    assert data.findings == ["Edema", "Effusion", "Mass", NO_FINDING]
    assert data.everything.labels.tolist() == [n_hot_of(f, data.findings) for f in FINDINGS]
    assert data.manifest["split"]["method"] == "by-image"
    assert data.manifest["split"]["images_of_patients_in_another_split"] is None
    assert len(set(data.everything.patient_ids)) == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert {line["patient_id"] for line in lines} == {None}


def test_nihs_file_names_say_the_patients(tmp_path):
    names = [f"{patient:08d}_{visit:03d}.png" for patient in range(1, 7) for visit in range(2)]
    folder = images(tmp_path, names)
    jsonl(folder / "metadata.jsonl", [{"file_name": n, "labels": n_hot_of(f)} for n, f in zip(names, FINDINGS)])
    found = read(folder)
    assert [row.patient_id for row in found.rows] == [str(patient) for patient in range(1, 7) for _ in range(2)]
    assert "patients: from the file names, which are NIH's (patient_followup.png)" in found.labels.notes
    assert choose_split(found.rows, None).method == "by-patient"
    images(tmp_path, ["other.png"])
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "other.png", "labels": n_hot_of((NO_FINDING,))}))
    assert not read(folder).labels.has_patients


@pytest.mark.parametrize(
    "count, findings, message",
    [
        (14, None, "labels are 14 numbers, and nothing names them. Give the 14 names in the order of the numbers"),
        (3, ("A", "B"), "labels are 3 numbers, and --findings has 2 names"),
        (15, ("A", "B"), "labels are 15 numbers, and --findings has 2 names"),
    ],
)
def test_numbers_that_nothing_names_are_refused(tmp_path, count, findings, message):
    folder = images(tmp_path)
    jsonl(folder / "metadata.jsonl", [{"file_name": name, "labels": [1.0] + [0.0] * (count - 1)} for name in NAMES])
    with pytest.raises(UserError, match=message):
        read(folder, findings=findings)


def test_findings_name_numbers_in_their_order_and_no_one_is_healthy(tmp_path):
    folder = images(tmp_path, NAMES[:4])
    rows = [[0, 1, 0], [1, 0, None], [0, 0, 0], [-1, 0, 0]]
    jsonl(folder / "metadata.jsonl", [{"file_name": n, "labels": row} for n, row in zip(NAMES, rows)])
    found = read(folder, findings=("Mass", "Edema", "Zebra"))
    assert findings_of(found) == [("Edema",), ("Mass",), (NO_FINDING,), ()]
    assert [row.unknown for row in found.rows] == [(), ("Zebra",), (), ("Mass",)]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"file_name": "a.png", "labels": [1.0] * 15}, {"file_name": "b.png", "labels": [1.0] * 14}],
            "several lengths",
        ),
        (
            [{"file_name": "a.png", "labels": [1.0] * 15}, {"file_name": "b.png", "labels": ["Mass"]}],
            r"lines 2 and 1\)",
        ),
        ([{"file_name": "a.png"}], "neither a column labels"),
        ([{"labels": ["Mass"]}], "no column file_name"),
        (["a.png"], "no JSON object of columns"),
    ],
)
def test_metadata_that_cannot_be_read_as_one_is_refused(tmp_path, rows, message):
    folder = images(tmp_path, ["a.png", "b.png"])
    jsonl(folder / "metadata.jsonl", rows)
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize("text", ["{", "", "\n\n", "[" * 2000])
def test_metadata_that_is_no_json_is_refused_by_line(tmp_path, text):
    folder = images(tmp_path, ["a.png"])
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"line 1 is no JSON|has no rows"):
        read(folder)


@pytest.mark.parametrize(
    "labels, reason",
    [
        (n_hot_of(("Mass", NO_FINDING)), "'No Finding' is 1 together with Mass"),
        ([0.5] + [0.0] * 14, "'0.5' in the column Atelectasis: only 1, 0, -1 and blank"),
    ],
)
def test_labels_that_contradict_themselves_reject_their_image(tmp_path, labels, reason):
    folder = images(tmp_path, ["a.png", "b.png"])
    jsonl(folder / "metadata.jsonl", [
        {"file_name": "a.png", "labels": labels}, {"file_name": "b.png", "labels": n_hot_of(("Mass",))}
    ])  # fmt: skip
    (only,) = read(folder).rejections
    assert (only.file, only.line) == ("a.png", 1) and reason in only.reason


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd.png", "C:\\films\\a.png"])
def test_names_stay_below_the_folder(tmp_path, name):
    images(tmp_path, ["secret.png"])
    folder = images(tmp_path / "inside", ["a.png"])
    jsonl(folder / "metadata.jsonl", [{"file_name": name, "labels": ["Mass"]}])
    reasons = {item.file: item.reason for item in read(folder).rejections}
    assert "leaves the image folder" in reasons[name]


def split_layout(folder, where, parts=("train", "validation", "test"), patients=None):
    """Four images a part, with metadata above, or in each part."""
    names = [f"{part}/{name}" for part, some in zip(parts, (NAMES[:4], NAMES[4:8], NAMES[8:])) for name in some]
    images(folder, names)
    rows = [
        {"file_name": name, "labels": list(findings), "patient_id": (patients or names)[number]}
        for number, (name, findings) in enumerate(zip(names, FINDINGS))
    ]
    if where == "above":
        jsonl(folder / "metadata.jsonl", rows)
    for part in parts if where == "in each" else ():
        inside = [
            {**row, "file_name": row["file_name"].split("/")[1]} for row in rows if row["file_name"].startswith(part)
        ]
        jsonl(folder / part / "metadata.jsonl", inside)
    return folder


@pytest.mark.parametrize("where", ["above", "in each"])
@pytest.mark.parametrize("parts", [("train", "validation", "test"), ("training", "val", "eval")])
def test_folders_of_splits_are_kept(tmp_path, where, parts):
    found = read(split_layout(tmp_path, where, parts))
    assert sorted(findings_of(found)) == sorted(FINDINGS)
    choice = choose_split(found.rows, None)
    assert choice.method == "given" and choice.notes == ["split: given by the data set (train, validation, test)"]
    of = dict(zip(parts, ("train", "validation", "test")))
    assert choice.splits == [of[row.path.split("/")[0]] for row in found.rows]


def test_a_split_with_patients_on_both_sides_is_refused_with_their_number(tmp_path):
    patients = ["p0", "p1", "p2", "p3", "p0", "p1", "p6", "p7", "p8", "p9", "p10", "p11"]
    found = read(split_layout(tmp_path, "above", patients=patients))
    with pytest.raises(UserError, match="2 patients have images in several parts .* such as p0: .* --split by-patient"):
        choose_split(found.rows, None)
    assert choose_split(found.rows, "by-patient").method == "by-patient"


def row_of(number, split="", patient="", study=""):
    return Row(f"{number}.png", f"{number}.png", ("Mass",), (), patient, study, None, "", "", None, split, number)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=80),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_parts_that_are_missing_are_cut_from_train_by_patient(people, validation, test):
    rows = [row_of(i, "test" if p % 5 == 0 else "train", str(p)) for i, (p, _) in enumerate(people)]
    try:
        choice = choose_split(rows, "given", None, validation, test)
    except UserError as error:
        assert "leaves no training image" in str(error)
        return
    where = {}
    for row, split in zip(rows, choice.splits):
        assert where.setdefault(row.patient_id, split) == split
        if any(row.split == "test" for row in rows):  # test is given, and gets no more
            assert (split == "test") == (row.split == "test")


def test_studies_keep_images_together_where_there_are_no_patients():
    rows = [row_of(i, study=f"s{i // 3}") for i in range(60)]
    choice = choose_split(rows, None, None, 0.3, 0.2)
    assert choice.method == "by-study" and len(set(choice.splits)) == 3
    assert all(len(set(choice.splits[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert "images of one study are together" in choice.notes[0]


def test_a_given_split_without_patients_says_so_in_its_method():
    rows = [row_of(i, ("train", "test")[i % 2]) for i in range(10)]
    choice = choose_split(rows, None, None, 0.0)
    assert choice.method == "given-images"
    assert choice.notes == [
        "split: given by the data set (train, test)",
        "no validation part is given: 0% of the images in train become it",
        "no patient ids: each image is on its own, and a patient may be on both sides of the split, so scores may be too optimistic",
    ]


@pytest.mark.parametrize(
    "rows, wanted, message",
    [
        ([row_of(0)], "by-patient", "no patient ids. Use --split by-image"),
        ([row_of(0, study="s")], "by-patient", "no patient ids. Use --split by-study"),
        ([row_of(0, patient="p")], "by-image", "for data sets without patient ids, and this one has them"),
        ([row_of(0, patient="p")], "by-study", "no study ids"),
        ([row_of(0, "train", "p"), row_of(1, "", "q")], "given", "1 of 2 images are in no part"),
        ([row_of(0, "test", "p")], "given", "leaves no training image"),
        (
            [row_of(0, "train", "p", "s"), row_of(1, "test", "q", "s")],
            "given",
            "1 studies have images in several parts",
        ),
    ],
)
def test_splits_that_cannot_be_are_refused(rows, wanted, message):
    with pytest.raises(UserError, match=message):
        choose_split(rows, wanted)


def test_in_place_does_not_write_over_the_labels_that_it_reads(tmp_path):
    folder = images(tmp_path / "images")
    before = FORMS["numbers"](folder).read_bytes()
    with pytest.raises(UserError, match="would write over .*metadata.jsonl"):
        prepare(PrepareSettings(None, folder, tmp_path / "out", in_place=True), progress=False)
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_metadata_that_prepare_wrote_is_read_to_the_same_store(tmp_path):
    folder = images(tmp_path / "images")
    rows = [(n, "|".join(f), i // 2) for i, (n, f) in enumerate(zip(NAMES, FINDINGS))]
    csv_path = table(tmp_path / "labels.csv", ["file_name", "labels", "patient_id"], rows)
    for name in ("first", "again"):  # the first writes metadata.jsonl beside the images
        prepare(PrepareSettings(csv_path, folder, tmp_path / name, size=16, workers=1, in_place=True), progress=False)
    metadata = tmp_path / "first" / "metadata.jsonl"
    prepare(PrepareSettings(metadata, folder, tmp_path / "second", size=16, workers=1), progress=False)
    names = tuple(load_prepared(tmp_path / "first").findings)
    prepare(PrepareSettings(None, folder, tmp_path / "third", size=16, workers=1, findings=names), progress=False)
    fingerprints = {load_prepared(tmp_path / name).fingerprint for name in ("first", "again", "second", "third")}
    assert len(fingerprints) == 1


def test_a_table_without_patients_is_read_as_an_imagefolders(tmp_path):
    folder = images(tmp_path / "images")
    path = table(tmp_path / "labels.csv", ["Image", "Labels"], [(n, "|".join(f)) for n, f in zip(NAMES, FINDINGS)])
    with pytest.raises(UserError, match="no column for patient_id .* without patients: --format imagefolder"):
        read(folder, path)
    assert findings_of(read(folder, path, "imagefolder")) == FINDINGS


@pytest.mark.parametrize(
    "name, part", [("valid", "validation"), ("DEV", "validation"), ("Training", "train"), ("x", "")]
)
def test_parts_have_the_names_that_datasets_knows(name, part):
    assert part_named(name) == part


def test_the_first_folder_of_a_split_counts():
    assert [part_of_path(path) for path in ("a/train/x.png", "my-test_1/x.png", "trains/x.png", "train.png")] == [
        "train", "test", "", "",
    ]  # fmt: skip


@given(st.text(max_size=30))
def test_any_text_is_a_list_of_labels_or_nothing(text):
    found = as_list(text)
    assert found is None or isinstance(found, list)


# Hugging Face data sets


def dataset_of(features_of_labels, labels, names=NAMES, **columns):
    import datasets

    def stored(number, name):
        out = io.BytesIO()
        film(number).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": name}

    rows = {"image": [stored(i, name) for i, name in enumerate(names)], "labels": labels, **columns}
    features = {
        "image": datasets.Image(),
        "labels": features_of_labels,
        **{name: datasets.Value("string") for name in columns},
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


CLASSES = ["Effusion", "Edema", "Mass", NO_FINDING]


def label_forms():
    import datasets

    one = [findings[0] for findings in FINDINGS]
    return {
        "class numbers": (datasets.Sequence(datasets.ClassLabel(names=CLASSES)), [[CLASSES.index(n) for n in f] for f in FINDINGS], FINDINGS),
        "one class": (datasets.ClassLabel(names=CLASSES), [CLASSES.index(name) for name in one], [(name,) for name in one]),
        "names": (datasets.Sequence(datasets.Value("string")), [list(f) for f in FINDINGS], FINDINGS),
        "numbers": (datasets.Sequence(datasets.Value("float32")), [n_hot_of(f) for f in FINDINGS], FINDINGS),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["class numbers", "one class", "names", "numbers"])
def test_a_data_set_on_disk_is_prepared_with_its_images(tmp_path, form):
    feature, labels, expected = label_forms()[form]
    people = [str(i // 2) for i in range(12)]
    dataset_of(feature, labels, patient_id=people).save_to_disk(str(tmp_path / "saved"))
    settings = PrepareSettings(None, None, tmp_path / "out", size=20, workers=1, dataset=str(tmp_path / "saved"))
    summary = prepare(settings, progress=False)
    data = load_prepared(tmp_path / "out")
    read_back = [tuple(n for n, v in zip(data.findings, row) if v) for row in data.everything.labels]
    assert read_back == expected
    assert data.everything.patient_ids == people
    assert np.array_equal(data.everything[3]["pixels"].numpy(), np.asarray(film(3)))
    assert "format: Hugging Face data set" in summary.describe()
    assert data.everything.table["file_name"][3] == "train/0000003-film_03.png"
    assert not (tmp_path / "out" / "images.partial").exists()
    assert prepare(settings, progress=False).reused


def test_the_splits_of_a_data_set_are_kept_and_its_findings_chosen(tmp_path):
    import datasets

    feature, labels, _ = label_forms()["names"]
    whole = dataset_of(feature, labels, patient_id=[str(i) for i in range(12)])
    parts = {
        "train": whole.select(range(6)),
        "validation": whole.select(range(6, 9)),
        "test": whole.select(range(9, 12)),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    settings = PrepareSettings(
        None,
        None,
        tmp_path / "out",
        size=16,
        workers=1,
        dataset=str(tmp_path / "saved"),
        findings=("Pleural Effusion",),
    )
    summary = prepare(settings, progress=False)
    assert summary.manifest["split"]["method"] == "given"
    assert {part: counts["images"] for part, counts in summary.manifest["counts"].items()} == {
        "train": 6, "validation": 3, "test": 3,
    }  # fmt: skip
    assert summary.manifest["findings"] == ["Pleural Effusion"]


def test_a_folder_of_images_is_a_data_set_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = split_layout(tmp_path / "data", "in each")
    settings = PrepareSettings(None, None, tmp_path / "out", size=16, workers=1, dataset=str(folder))
    assert prepare(settings, progress=False).manifest["split"]["method"] == "given"
    assert len(load_prepared(tmp_path / "out").split("test")) == 4


def test_a_broken_image_of_a_data_set_is_rejected_by_name(tmp_path):
    import datasets

    feature, labels, _ = label_forms()["names"]
    good = dataset_of(feature, labels)
    rows = [
        {"bytes": b"no image", "path": "bad.png"},
        *good.cast_column("image", datasets.Image(decode=False))["image"][1:],
    ]
    broken = datasets.Dataset.from_dict({"image": rows, "labels": labels}, features=good.features)
    broken.save_to_disk(str(tmp_path / "saved"))
    settings = PrepareSettings(None, None, tmp_path / "out", size=16, workers=1, dataset=str(tmp_path / "saved"))
    summary = prepare(settings, progress=False)
    assert not summary.finished and "Format: Hugging Face data set" in summary.describe()
    assert "train/0000000-bad.png" in (tmp_path / "out" / "rejected.csv").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MARKER, "rejected.csv"]


def test_a_saved_data_set_does_not_read_files_outside_of_it(tmp_path, monkeypatch):
    import datasets

    feature, labels, _ = label_forms()["names"]
    secret = images(tmp_path / "elsewhere", ["secret.png"]) / "secret.png"
    good = dataset_of(feature, labels[:1], NAMES[:1])
    good.save_to_disk(str(tmp_path / "saved"))
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(secret)}], "labels": labels[:1]}, features=good.features
    )
    monkeypatch.setattr(datasets, "load_from_disk", lambda name: rows)  # saving embeds images; another writer need not
    with pytest.raises(UserError, match="secret.png lies outside of the data set"):
        prepare(PrepareSettings(None, None, tmp_path / "out", dataset=str(tmp_path / "saved")), progress=False)


def test_a_data_set_without_images_or_with_other_flags_is_refused(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"labels": ["Mass"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="has 0 columns of images, and one is read. Its columns: labels"):
        prepare(PrepareSettings(None, None, tmp_path / "out", dataset=str(tmp_path / "saved")), progress=False)
    with pytest.raises(UserError, match="--dataset brings its own images and labels. Leave --images out"):
        PrepareSettings(None, tmp_path, tmp_path / "out", dataset="x")


def test_unknown_labels_of_a_data_set_are_nan(tmp_path):
    import datasets

    rows = [[1.0, 0.0], [None, 1.0], [math.nan, 1.0], [0.0, -1.0]]
    feature = datasets.Sequence(datasets.Value("float32"))
    dataset_of(feature, rows, NAMES[:4], patient_id=list("abcd")).save_to_disk(str(tmp_path / "saved"))
    settings = PrepareSettings(
        None, None, tmp_path / "out", size=16, workers=1, dataset=str(tmp_path / "saved"), findings=("A", "B"),
        validation_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    prepare(settings, progress=False)
    expected = [[1, 0], [math.nan, 1], [math.nan, 1], [0, math.nan]]
    np.testing.assert_array_equal(load_prepared(tmp_path / "out").everything.labels, np.array(expected, np.float32))


def test_no_program_of_a_data_set_is_run(tmp_path, monkeypatch):
    """datasets 2.14 runs NAME/NAME.py; there a folder with one, and every name, is refused before anything is loaded."""
    import datasets

    from ipu_trainer.tasks.chest_xray.data.label_formats import hugging_face

    folder = tmp_path / "films"
    folder.mkdir()
    assert hugging_face._without_scripts(str(folder)) == {}
    (folder / "films.py").write_text("raise SystemExit('the script ran')\n")
    monkeypatch.setattr(datasets, "__version__", "2.14.7")
    monkeypatch.setattr(datasets, "load_dataset", lambda path: pytest.fail("it was loaded"))
    for name in (str(folder), "some/films"):
        with pytest.raises(UserError, match="no code from data"):
            hugging_face._load(name)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, trust_remote_code=None: None)
    assert hugging_face._without_scripts("some/films") == {"trust_remote_code": False}


def small_folder(folder, text, count=4, name="metadata.csv"):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((20, 20), number, dtype=np.uint8)).save(folder / f"{number:08d}_000.png")
    (folder / name).write_text(text)
    return folder


def test_a_column_without_a_name_is_no_patient(tmp_path):
    rows = "".join(f"{number},{number:08d}_000.png,Edema\n" for number in range(4))
    folder = small_folder(tmp_path / "films", ",file_name,labels\n" + rows)
    labels = read_labels(None, folder, LabelChoices())
    records = list(labels.records)
    assert [record.patient_id for record in records] == ["0", "1", "2", "3"] and not any(r.error for r in records)


def test_labels_that_would_be_lost_are_refused_by_name(tmp_path):
    rows = "".join(f"{number:08d}_000.png,{name}\n" for number, name in enumerate(["Edema", "Cardiomegaly"] * 2))
    folder = small_folder(tmp_path / "films", "file_name,labels\n" + rows)
    with pytest.raises(UserError, match="Cardiomegly"):
        list(read_labels(None, folder, LabelChoices(findings=("Edema", "Cardiomegly"))).records)
    lines = [{"file_name": f"{number:08d}_000.png", "labels": [1.0] * 15 if number else []} for number in range(4)]
    folder = small_folder(tmp_path / "numbers", "\n".join(map(json.dumps, lines)), name="metadata.jsonl")
    assert "empty list" in next(iter(read_labels(None, folder, LabelChoices()).records)).error


def test_prepare_writes_over_no_file_that_it_reads(tmp_path, capsys):
    rows = "".join(
        f'{{"file_name": "{number:08d}_000.png", "labels": ["Edema"], "note": "mine"}}\n' for number in range(4)
    )
    folder = small_folder(tmp_path / "films", rows, name="metadata.jsonl")
    before = (folder / "metadata.jsonl").read_bytes()
    assert main(["prepare", "chest-xray", "--images", str(folder), "--output", str(folder)]) == 1
    assert "holds files that this command did not make" in capsys.readouterr().err
    table = [
        "--csv",
        str(folder / "metadata.jsonl"),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "out"),
        "--in_place",
    ]
    assert main(["prepare", "chest-xray", *table]) == 1
    assert "from which the labels are read" in capsys.readouterr().err
    (tmp_path / "other" / "metadata").mkdir(parents=True)
    (tmp_path / "other" / "metadata" / "mine.txt").write_text("mine")
    assert main(["prepare", "chest-xray", "--images", str(folder), "--output", str(tmp_path / "other")]) == 1
    assert (tmp_path / "other" / "metadata" / "mine.txt").exists() and (
        folder / "metadata.jsonl"
    ).read_bytes() == before
    assert main(["prepare", "chest-xray", "--images", str(tmp_path / "typo"), "--output", str(tmp_path / "out")]) == 1
    assert "typo is not a folder" in capsys.readouterr().err


def test_a_table_counts_before_the_metadata_that_prepare_made_of_it(tmp_path, capsys):
    rows = "".join(f"{number:08d}_000.png,{name},{number}\n" for number, name in enumerate(["Edema", "Mass"] * 4))
    folder = small_folder(
        tmp_path / "films", "Image Index,Finding Labels,Patient ID\n" + rows, 8, "Data_Entry_2017.csv"
    )
    command = [
        "prepare",
        "chest-xray",
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "out"),
        "--size",
        "16",
        "--workers",
        "1",
    ]
    assert main([*command, "--in_place"]) == 0
    assert (folder / "metadata.jsonl").exists()
    capsys.readouterr()
    assert main([*command, "--in_place"]) == 0  # the same command again, as after a kill
    assert "already prepared" in capsys.readouterr().out
    assert main([*command[:4], "--output", str(tmp_path / "again"), "--size", "16", "--workers", "1"]) == 0
    assert "NIH ChestX-ray14" in capsys.readouterr().out
    assert load_prepared(tmp_path / "again").findings == ["Edema", "Mass"]
