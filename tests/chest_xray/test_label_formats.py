"""Labels as the data sets ship them: made-up rows under the real headers, read to the findings that are present and unknown."""

import csv
import gzip
import importlib.util
import json
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ipu_trainer.cli import main
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.finding_names import SYNONYMS, same_finding
from ipu_trainer.tasks.chest_xray.data.image_folder import ImageFolder
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import FindingColumns
from ipu_trainer.tasks.chest_xray.data.label_formats.chexpert import CHEXPERT_FINDINGS, DEVICES
from ipu_trainer.tasks.chest_xray.data.label_formats.label_record import LabelChoices
from ipu_trainer.tasks.chest_xray.data.label_formats.recognition import read_labels
from ipu_trainer.tasks.chest_xray.data.label_formats.vindr import VINDR_FINDINGS
from ipu_trainer.tasks.chest_xray.data.label_table import match_images
from ipu_trainer.tasks.chest_xray.data.labels import NO_FINDING, n_hot
from ipu_trainer.tasks.chest_xray.data.prepare import prepare
from ipu_trainer.tasks.chest_xray.data.prepare_settings import PrepareSettings

CHEXPERT = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
PLUS = [
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "report", "age", "sex",
    "race", "split",
]  # fmt: skip
MIMIC = ["subject_id", "study_id", *sorted(CHEXPERT_FINDINGS)]
VINBIGDATA = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
PADCHEST = [
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "ViewPosition_DICOM",
    "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM", "PhotometricInterpretation_DICOM",
    "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM", "SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM",
    "WindowWidth_DICOM", "Rows_DICOM", "Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM",
    "ExposureTime", "RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations",
    "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
]  # fmt: skip
RSNA = ["patientId", "x", "y", "width", "height", "Target"]


def write(path, header, rows):
    """Rows are dicts by column, or lists of cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [[row.get(name, "") for name in header] if isinstance(row, dict) else row for row in rows]
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *cells])
    return path


def images(folder, names, size=16):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def matched(table, folder, wanted="auto", only_present=False, **choices):
    labels = read_labels(table, folder, LabelChoices(**choices), wanted)
    return match_images(labels, ImageFolder(folder), only_present)


def rows_of(found):
    assert found.rejections == ()
    return {row.path: row for row in found.rows}


def chexpert(patient, view="view1_frontal", part="train", side="Frontal", position="AP", **cells):
    path = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/{view}.jpg"
    about = {"Path": path, "Sex": "Female", "Age": "68", "Frontal/Lateral": side, "AP/PA": position}
    return {**about, **{name.replace("_", " "): value for name, value in cells.items()}}


CHEXPERT_ROWS = [
    chexpert(1, No_Finding="1.0", Pneumothorax="0.0", Support_Devices="1.0"),
    chexpert(2, Edema="1.0", Pneumonia="-1.0", Pleural_Effusion="0.0"),
    chexpert(2, view="view2_lateral", side="Lateral", position="", Pneumonia="-1.0"),
    chexpert(3, position="LL", No_Finding="1.0"),
    chexpert(4),
]


@pytest.fixture
def chexpert_folder(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    write(root / "train.csv", CHEXPERT, CHEXPERT_ROWS)
    return images(root, [row["Path"].split("/", 1)[1] for row in CHEXPERT_ROWS])


def test_chexpert_keeps_what_is_uncertain_or_blank_as_unknown(chexpert_folder):
    found = matched(None, chexpert_folder)
    rows = rows_of(found)
    first = rows["train/patient00001/study1/view1_frontal.jpg"]
    assert first.findings == ("No Finding", "Support Devices") and first.unknown == ()
    second = rows["train/patient00002/study1/view1_frontal.jpg"]
    assert second.findings == ("Edema",)
    assert set(second.unknown) == set(CHEXPERT_FINDINGS) - {"Edema", "Pleural Effusion", NO_FINDING}
    assert (second.patient_id, second.study_id, second.split) == ("patient00002", "patient00002/study1", "train")
    assert (second.sex, second.age, second.view) == ("F", 68, "AP")
    third = rows["train/patient00002/study1/view2_lateral.jpg"]
    assert third.findings == () and NO_FINDING in third.unknown and third.view == "LATERAL"
    assert rows["train/patient00003/study1/view1_frontal.jpg"].unknown == (DEVICES,)
    assert rows["train/patient00003/study1/view1_frontal.jpg"].view == "LL"
    assert found.num_without_label == 1
    assert found.labels.title == "CheXpert"
    assert "-1 (uncertain) is read as unknown: Pneumonia 2" in found.labels.notes


@pytest.mark.parametrize(
    "choices, present, unknown",
    [
        ({"uncertain": "ones"}, ("Edema", "Pneumonia"), 10),
        ({"uncertain": "zeros"}, ("Edema",), 10),
        ({"blank": "zeros"}, ("Edema",), 1),
        ({"uncertain": "zeros", "blank": "zeros"}, ("Edema",), 0),
        ({"findings": ("Effusion", "edema")}, ("edema",), 0),
        ({"findings": ("Pneumonia",)}, (), 1),
    ],
)
def test_uncertain_blank_and_findings_are_chosen(chexpert_folder, choices, present, unknown):
    row = rows_of(matched(None, chexpert_folder, **choices))["train/patient00002/study1/view1_frontal.jpg"]
    assert (row.findings, len(row.unknown)) == (present, unknown)


def test_no_finding_rules_out_a_finding_that_alone_is_asked_for(chexpert_folder):
    rows = rows_of(matched(None, chexpert_folder, findings=("Pneumonia",)))
    assert rows["train/patient00003/study1/view1_frontal.jpg"].unknown == ()


def test_a_finding_that_the_data_set_has_not_is_refused_with_the_nearest(chexpert_folder):
    with pytest.raises(
        UserError, match="--findings Pneumonja: .* no such finding, nearest is 'Pneumonia'. It has No Finding"
    ):
        matched(None, chexpert_folder, findings=("Pneumonja",))


def test_an_absent_film_of_chexpert_is_not_mistaken_for_another_patients(chexpert_folder):
    (chexpert_folder / "train/patient00003/study1/view1_frontal.jpg").unlink()
    found = matched(None, chexpert_folder, only_present=True)
    assert found.num_rows_without_image == 1 and found.rejections == ()
    strict = matched(None, chexpert_folder)
    assert [item.reason for item in strict.rejections] == ["row without image: no such file below the image folder"]


@pytest.mark.parametrize("below", ["", "train"])
def test_chexpert_is_found_from_its_folder_or_one_below(chexpert_folder, below):
    found = matched(chexpert_folder / "train.csv", chexpert_folder / below)
    assert len(found.rows) == 4 and found.rejections == ()


def test_train_csv_counts_among_the_tables_that_chexpert_ships(chexpert_folder):
    write(chexpert_folder / "train_cheXbert.csv", CHEXPERT, CHEXPERT_ROWS[:1])
    assert len(matched(None, chexpert_folder).rows) == 4
    (chexpert_folder / "train.csv").rename(chexpert_folder / "train_visualCheXbert.csv")
    with pytest.raises(
        UserError, match="several tables of the format chexpert: .*train_cheXbert.csv, .* Say which: --csv FILE"
    ):
        matched(None, chexpert_folder)


def test_valid_csv_beside_train_csv_is_the_validation_part(chexpert_folder):
    valid = [chexpert(9, part="valid", **{name.replace(" ", "_"): "0.0" for name in CHEXPERT_FINDINGS[:13]})]
    images(chexpert_folder, [row["Path"].split("/", 1)[1] for row in valid])
    write(chexpert_folder / "valid.csv", CHEXPERT, valid)
    found = matched(None, chexpert_folder)
    assert Counter(row.split for row in found.rows) == {"train": 4, "validation": 1}
    assert rows_of(found)["valid/patient00009/study1/view1_frontal.jpg"].findings == ()


@pytest.mark.parametrize(
    "cell, reason", [("2", "'2' in the column Edema"), ("1.0", "'No Finding' is 1 together with Edema")]
)
def test_a_cell_that_is_no_label_rejects_its_row_by_line(tmp_path, cell, reason):
    rows = [chexpert(1, No_Finding="1.0", Edema=cell), chexpert(2, Edema="1.0")]
    folder = images(tmp_path / "x", [row["Path"] for row in rows])
    found = matched(write(tmp_path / "train.csv", CHEXPERT, rows), folder)
    assert [(item.line, reason in item.reason) for item in found.rejections] == [(2, True)] and len(found.rows) == 1


def test_chexpert_plus_has_its_labels_in_json_lines_and_its_images_as_png(tmp_path):
    paths = [f"train/patient{patient:05d}/study1/view1_frontal.jpg" for patient in (1, 2)]
    rows = [
        {"path_to_image": path, "deid_patient_id": f"patient{n:05d}", "patient_report_date_order": "1", "split": "train", "sex": "Male",
         "age": "40.0", "frontal_lateral": "Frontal", "ap_pa": "PA"}
        for n, path in enumerate(paths, start=1)
    ]  # fmt: skip
    table = write(tmp_path / "df_chexpert_plus_240401.csv", PLUS, rows)
    folder = images(tmp_path / "PNG", [path.replace(".jpg", ".png") for path in paths])
    with pytest.raises(UserError, match="labels are in a file of their own. Put impression_fixed.json"):
        matched(table, folder)
    (tmp_path / "chexbert_labels").mkdir()
    lines = [
        {"path_to_image": paths[0], "Edema": 1.0, "Pneumonia": -1.0, "No Finding": None},
        {"path_to_image": paths[1], "No Finding": 1.0},
    ]
    (tmp_path / "chexbert_labels" / "findings_fixed.json").write_text("\n".join(map(json.dumps, lines)))
    found = matched(table, folder)
    row = rows_of(found)[paths[0].replace(".jpg", ".png")]
    assert (row.findings, "Pneumonia" in row.unknown, NO_FINDING in row.unknown) == (("Edema",), True, False)
    assert (row.patient_id, row.age, row.sex, row.view, row.split) == ("patient00001", 40, "M", "PA", "train")
    assert found.labels.title == "CheXpert Plus"


@pytest.fixture
def mimic_folder(tmp_path):
    labels = [
        {"subject_id": "10000032", "study_id": "50414267", "No Finding": "1.0"},
        {"subject_id": "10000764", "study_id": "57375967", "Consolidation": "-1.0", "Edema": "1.0"},
        {"subject_id": "10000898", "study_id": "50771383", "Pneumonia": "1.0", "Edema": "0.0"},
    ]
    films = [
        ("02aa804e", "10000032", "50414267", "train", "PA"), ("174413ec", "10000032", "50414267", "train", "LATERAL"),
        ("096052b7", "10000764", "57375967", "validate", "AP"), ("8959e402", "10000898", "50771383", "test", "PA"),
        ("b75df1bd", "10000935", "50578979", "train", "AP"),
    ]  # fmt: skip
    write(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", MIMIC, labels)
    split = [[image, study, subject, part] for image, subject, study, part, _ in films]
    write(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], split)
    head = [
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
    ]
    about = [[image, subject, study, "CHEST", view, 3056, 2544] for image, subject, study, _, view in films]
    write(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", head, about)
    return images(tmp_path, [f"files/p10/p{subject}/s{study}/{image}.jpg" for image, subject, study, *_ in films])


def test_mimic_gives_the_labels_of_a_study_to_its_films_and_keeps_its_split(mimic_folder):
    found = matched(None, mimic_folder)
    rows = rows_of(found)
    assert Counter(row.split for row in found.rows) == {"train": 2, "validation": 1, "test": 1}
    film = rows["files/p10/p10000764/s57375967/096052b7.jpg"]
    assert (film.findings, "Consolidation" in film.unknown, film.view) == (("Edema",), True, "AP")
    assert (film.patient_id, film.study_id) == ("10000764", "57375967")
    assert {row.view for row in found.rows if row.patient_id == "10000032"} == {"PA", "LATERAL"}
    assert found.num_without_label == 1  # its study has no labels


def test_mimic_without_a_table_of_films_is_refused(mimic_folder):
    for name in ("split", "metadata"):
        (mimic_folder / f"mimic-cxr-2.0.0-{name}.csv.gz").unlink()
    with pytest.raises(UserError, match="no images. Put mimic-cxr-2.0.0-split.csv or"):
        matched(None, mimic_folder)


def test_a_table_beside_the_labels_that_changed_is_another_preparation(mimic_folder, tmp_path):
    settings = PrepareSettings(None, mimic_folder, tmp_path / "out", size=16, workers=1)
    assert prepare(settings, progress=False).manifest["labels"]["notes"][:2] == [
        f"also read: {mimic_folder / f'mimic-cxr-2.0.0-{name}.csv.gz'}" for name in ("split", "metadata")
    ]
    assert prepare(settings, progress=False).reused
    (mimic_folder / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(
        (mimic_folder / "mimic-cxr-2.0.0-metadata.csv.gz").read_bytes()
    )
    with pytest.raises(UserError, match="other settings or another CSV"):
        prepare(settings, progress=False)


def test_mimic_with_metadata_alone_has_films_and_views_and_no_split(mimic_folder):
    (mimic_folder / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    found = matched(None, mimic_folder)
    assert {row.split for row in found.rows} == {""} and {row.view for row in found.rows} == {"PA", "LATERAL", "AP"}


def box(image, name, reader, spot=("", "", "", "")):
    return [image, name, "0", reader, *spot]


def test_more_than_half_of_the_readers_of_vindr_decide(tmp_path):
    rows = [
        *[box("aaa", "No finding", reader) for reader in ("R1", "R2", "R3")],
        box("bbb", "Pleural effusion", "R1", (1, 1, 9, 9)), box("bbb", "Pleural effusion", "R1", (2, 2, 9, 9)),
        box("bbb", "Pleural effusion", "R2", (1, 1, 8, 9)), box("bbb", "ILD", "R3", (1, 1, 8, 9)),
        *[box("ccc", name, f"R{i}", (1, 1, 8, 9)) for i, name in enumerate(("ILD", "Cardiomegaly", "Nodule/Mass"))],
        box("ddd", "ILD", "R1", (1, 1, 8, 9)), box("ddd", "Cardiomegaly", "R2", (1, 1, 8, 9)),
        box("ddd", "Cardiomegaly", "R1", (1, 1, 8, 9)),
    ]  # fmt: skip
    folder = images(tmp_path / "train", [f"{name}.png" for name in ("aaa", "bbb", "ccc", "ddd")])
    found = matched(write(tmp_path / "train.csv", VINBIGDATA, rows), folder)
    rows = rows_of(found)
    assert [(rows[f"{name}.png"].findings, rows[f"{name}.png"].unknown) for name in ("aaa", "bbb", "ccc", "ddd")] == [
        ((NO_FINDING,), ()),
        (("Pleural effusion",), ()),
        ((), ()),
        (("Cardiomegaly",), ("ILD",)),
    ]
    assert (
        "4 images, each of 2 or 3 readers" in found.labels.notes[0]
        and "1 ties are unknown. In 1 images" in found.labels.notes[0]
    )
    assert not found.labels.has_patients


def test_vindr_of_physionet_is_read_with_its_test_part(tmp_path):
    def votes(image, *names):
        return {"image_id": image, **{name: "1" if name in names else "0" for name in VINDR_FINDINGS}}

    train = [
        {"rad_id": f"R{i}", **votes("a" * 32, *names)}
        for i, names in enumerate((["COPD"], ["COPD", "ILD"], ["No finding"]))
    ]
    test_head = [name.replace("Other diseases", "Other disease") for name in VINDR_FINDINGS]
    write(tmp_path / "annotations" / "image_labels_train.csv", ["image_id", "rad_id", *VINDR_FINDINGS], train)
    write(tmp_path / "annotations" / "image_labels_test.csv", ["image_id", *test_head], [
        {**votes("b" * 32, "Edema"), "Other disease": "1"}
    ])  # fmt: skip
    images(tmp_path, [f"train/{'a' * 32}.png", f"test/{'b' * 32}.png"])
    found = matched(tmp_path / "annotations" / "image_labels_train.csv", tmp_path)
    rows = rows_of(found)
    assert [(rows[f"{part}/{name * 32}.png"].findings, rows[f"{part}/{name * 32}.png"].split) for part, name in (("train", "a"), ("test", "b"))] == [
        (("COPD",), "train"),
        (("Edema", "Other diseases"), "test"),
    ]  # fmt: skip


def padchest(number, labels, patient="7", birth="1950.0"):
    about = {
        "ImageID": f"{number}.png",
        "ImageDir": "0",
        "StudyDate_DICOM": "20140915",
        "StudyID": f"s{number}",
        "PatientID": patient,
    }
    return {**about, "PatientBirth": birth, "PatientSex_DICOM": "F", "Projection": "PA", "Labels": labels}


PADCHEST_LISTS = [
    "['pleural effusion', ' cardiomegaly ']",
    "['normal']",
    "['normal', 'nodule']",
    "['unchanged', '']",
    "[]",
    "nan",
    "['mass', 'pulmonary mass', 'exclude']",
    "['normal ', 'unchanged']",
]


def test_padchest_lists_are_stripped_and_remarks_are_no_findings(tmp_path):
    rows = [padchest(number, labels) for number, labels in enumerate(PADCHEST_LISTS)]
    folder = images(tmp_path / "images", [f"{number % 2}/{number}.png" for number in range(len(rows))])
    found = matched(write(tmp_path / "PADCHEST.csv.gz", PADCHEST, rows), folder)
    read = {row.file_name: row.findings for row in found.rows}
    assert read == {
        "0.png": ("cardiomegaly", "pleural effusion"),
        "1.png": (NO_FINDING,),
        "2.png": ("nodule",),
        "6.png": ("mass", "pulmonary mass"),
        "7.png": (NO_FINDING,),
    }
    row = found.rows[0]
    assert (row.patient_id, row.study_id, row.age, row.sex, row.view) == ("7", "s0", 64, "F", "PA")
    assert found.num_without_label == 3 and found.rejections == ()
    assert found.labels.notes == [
        "10 spellings of 9 labels once spaces are dropped, with 1 empty strings",
        "1 cells without a list, and 2 with remarks or nothing alone, have no label",
        "1 images have other labels beside 'normal', which count",
    ]


def test_a_subset_of_padchest_is_named_by_synonyms(tmp_path):
    rows = [padchest(number, labels) for number, labels in enumerate(PADCHEST_LISTS)]
    folder = images(tmp_path / "images", [f"{number}.png" for number in range(len(rows))])
    table = write(tmp_path / "PADCHEST.csv", PADCHEST, rows)
    found = matched(table, folder, findings=("Effusion", "Mass", "unchanged"))
    assert {row.path: row.findings for row in found.rows} == {
        "0.png": ("Effusion",), "1.png": (), "2.png": (), "3.png": ("unchanged",), "6.png": ("Mass",), "7.png": ("unchanged",),
    }  # fmt: skip
    with pytest.raises(UserError, match="--findings Hernia: .* has no such finding"):
        matched(table, folder, findings=("Hernia",))


@pytest.mark.parametrize("cell", ["normal", "['normal'", "{'normal'}", "[1]", "[" * 3000])
def test_a_cell_of_padchest_that_is_no_list_rejects_its_row(tmp_path, cell):
    folder = images(tmp_path / "images", ["0.png", "1.png"])
    found = matched(write(tmp_path / "p.csv", PADCHEST, [padchest(0, cell), padchest(1, "['normal']")]), folder)
    assert [(item.line, "no list of labels" in item.reason) for item in found.rejections] == [(2, True)]


def test_rsna_has_a_row_a_box_in_a_zip_and_its_ages_in_another_table(tmp_path):
    rows = [["a1", "", "", "", "", "0"], ["b2", 1, 2, 3, 4, "1"], ["b2", 5, 6, 7, 8, "1"], ["c3", "", "", "", "", "0"]]
    plain = write(tmp_path / "plain" / "stage_2_train_labels.csv", RSNA, rows)
    with zipfile.ZipFile(tmp_path / "stage_2_train_labels.csv.zip", "w") as packed:
        packed.write(plain, plain.name)
    head = ["", "BodyPartExamined", "Filename", "PatientAge", "PatientID", "PatientSex", "ViewPosition"]
    write(tmp_path / "stage_2_train_images_dicom_headers.csv.gz", head, [[0, "CHEST", "b2.dcm", "43", "b2", "F", "AP"]])
    folder = images(tmp_path / "images", ["a1.png", "b2.png", "c3.png"])
    found = matched(tmp_path / "stage_2_train_labels.csv.zip", folder)
    read = rows_of(found)
    assert [read[f"{name}.png"].findings for name in ("a1", "b2", "c3")] == [(), ("Pneumonia",), ()]
    assert (read["b2.png"].age, read["b2.png"].sex, read["b2.png"].view) == (43, "F", "AP")
    write(tmp_path / "stage_2_detailed_class_info.csv", ["patientId", "class"], [
        ["a1", "Normal"], ["b2", "Lung Opacity"], ["c3", "No Lung Opacity / Not Normal"]
    ])  # fmt: skip
    again = rows_of(matched(tmp_path / "stage_2_train_labels.csv.zip", folder))
    assert [again[f"{name}.png"].findings for name in ("a1", "b2", "c3")] == [(NO_FINDING,), ("Pneumonia",), ()]


def test_kaggles_sample_of_nih_is_read_with_its_ages(tmp_path):
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
            "OriginalImageWidth", "OriginalImageHeight", "OriginalImagePixelSpacing_x", "OriginalImagePixelSpacing_y"]  # fmt: skip
    row = ["00000013_005.png", "Emphysema|Infiltration", "5", "13", "060Y", "M", "AP", "3056", "2544", "0.139", "0.139"]
    folder = images(tmp_path / "sample", ["images/00000013_005.png"])
    write(folder / "sample_labels.csv", head, [row])
    found = matched(None, folder)
    (only,) = found.rows
    assert (only.findings, only.age, only.patient_id) == (("Emphysema", "Infiltration"), 60, "13")
    assert found.labels.title == "NIH ChestX-ray14"


def test_another_format_than_the_columns_is_refused_and_several_tables_are_asked_about(chexpert_folder):
    with pytest.raises(UserError, match="--format padchest: .* has not its columns, but those of chexpert"):
        matched(chexpert_folder / "train.csv", chexpert_folder, "padchest")
    write(chexpert_folder / "PADCHEST.csv", PADCHEST, [padchest(0, "['normal']")])
    with pytest.raises(UserError, match=r"tables of several formats \(chexpert, padchest\)"):
        matched(None, chexpert_folder)
    assert len(matched(None, chexpert_folder, "chexpert").rows) == 4


def test_a_folder_without_labels_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="neither metadata.jsonl or metadata.csv nor a label table that is known"):
        matched(None, images(tmp_path / "x", ["a.png"]))


CELLS = st.lists(st.sampled_from(["1.0", "0.0", "-1.0", ""]), min_size=14, max_size=14)


@given(CELLS, st.sampled_from(["ignore", "zeros", "ones"]), st.sampled_from(["ignore", "zeros"]))
def test_a_finding_is_present_unknown_or_absent_and_no_finding_never_contradicts(cells, uncertain, blank):
    choices = LabelChoices((), uncertain, blank)
    names = {name: name for name in CHEXPERT_FINDINGS}
    verdict = FindingColumns(dict(enumerate(CHEXPERT_FINDINGS)), names, choices, (DEVICES,)).verdict(cells)
    others = set(verdict.present) - {NO_FINDING, DEVICES}
    assert not set(verdict.present) & set(verdict.unknown)
    assert not (NO_FINDING in verdict.present and others)
    assert verdict.labelled == any(cells)
    if not verdict.error:
        assert {name for name, cell in zip(CHEXPERT_FINDINGS, cells) if cell == "1.0"} <= set(verdict.present)
        assert not {name for name, cell in zip(CHEXPERT_FINDINGS, cells) if cell == "0.0"} & {
            *verdict.present,
            *verdict.unknown,
        }
        assert not (others and NO_FINDING in verdict.unknown)
        if NO_FINDING in verdict.present:
            assert set(verdict.unknown) <= {DEVICES}
        if uncertain != "ignore" and blank == "zeros":
            assert verdict.unknown == ()


def test_unknown_labels_are_nan_in_the_store_null_in_the_metadata_and_counted(chexpert_folder, tmp_path, capsys):
    words = [
        "prepare",
        "chest-xray",
        "--images",
        str(chexpert_folder),
        "--output",
        str(tmp_path / "out"),
        "--size",
        "16",
    ]
    fractions = ["--validation_fraction", "0", "--test_fraction", "0", "--workers", "1"]
    assert main([*words, *fractions]) == 0
    said = capsys.readouterr().out
    assert "format: CheXpert (columns Path, Sex, Age, Frontal/Lateral, AP/PA, No Finding, ...)" in said
    assert "1 without any label left out" in said
    assert re.search(r"^Edema +1 +0 +0  unknown: 1, 0, 0$", said, re.MULTILINE)
    assert "never positive, so left out: Atelectasis, Cardiomegaly" in said
    data = load_prepared(tmp_path / "out")
    assert data.findings == ["Edema", "No Finding", "Support Devices"]
    expected = [[0, 1, 1], [1, 0, np.nan], [np.nan, np.nan, np.nan], [0, 1, np.nan]]
    np.testing.assert_array_equal(data.everything.labels, np.array(expected, np.float32))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [[None if x != x else float(x) for x in row] for row in expected]
    assert [line["study_id"] for line in lines][:2] == ["patient00001/study1", "patient00002/study1"]
    assert data.manifest["counts"]["train"]["unknown"] == {"Edema": 1, "No Finding": 1, "Support Devices": 3}
    again = matched(tmp_path / "out" / "metadata.jsonl", chexpert_folder)
    assert [(row.findings, row.unknown) for row in again.rows] == [
        (("No Finding", "Support Devices"), ()),
        (("Edema",), ("Support Devices",)),
        (("No Finding",), ("Support Devices",)),
    ]  # the image of which nothing is known is left out
    same = PrepareSettings(None, chexpert_folder, tmp_path / "out", size=16, test_fraction=0.0, validation_fraction=0.0)
    assert prepare(same, progress=False).reused
    for change in ({"uncertain": "ones"}, {"blank": "zeros"}, {"format": "chexpert"}):
        with pytest.raises(UserError, match="other settings"):
            prepare(replace(same, **change), progress=False)


def test_n_hot_has_nan_where_a_finding_is_unknown_and_ignores_what_is_no_class():
    found = n_hot([("a",), ()], ["a", "b"], [("b", "z"), ("a", "b")])
    np.testing.assert_array_equal(found, np.array([[1, np.nan], [np.nan, np.nan]], np.float32))


@pytest.mark.parametrize("flag, value", [("--uncertain", "maybe"), ("--blank", "ones"), ("--format", "csv")])
def test_choices_that_are_none_are_refused(tmp_path, flag, value, capsys):
    folder = images(tmp_path / "x", ["a.png"])
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "labels": ["Edema"]}\n')
    assert main(["prepare", "chest-xray", "--images", str(folder), "--output", str(tmp_path / "o"), flag, value]) == 1
    assert f"{flag} {value!r} is not one of" in capsys.readouterr().err


def test_the_same_findings_of_data_sets_meet_and_different_ones_do_not():
    nih = ("Effusion", "Mass", "No Finding", "Nodule", "Pleural_Thickening")
    assert same_finding("Pleural Effusion", nih) == "Effusion"
    assert same_finding("pleural thickening", nih) == "Pleural_Thickening"
    assert same_finding("normal", nih) == same_finding("No finding", nih) == NO_FINDING
    for other in ("Nodule/Mass", "pericardial effusion", "calcified pleural thickening", "Lung Opacity"):
        assert same_finding(other, nih) is None
    everyone = [name for known, others in SYNONYMS.items() for name in (known, *others)]
    assert all(
        same_finding(name, list(SYNONYMS)) == known for known, others in SYNONYMS.items() for name in (known, *others)
    )
    assert len(set(everyone)) == len(everyone)


@pytest.fixture(scope="module")
def real_tables():
    """The tables that `pip install --no-deps torchxrayvision==1.5.7` brings, where it is installed."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchxrayvision, which ships the real tables, is not installed")
    return Path(spec.origin).parent / "data"


def test_the_real_tables_have_the_numbers_of_their_data_sets(real_tables, tmp_path):
    def read(name):
        labels = read_labels(real_tables / name, tmp_path, LabelChoices())
        records = list(labels.records)
        assert not any(record.error for record in records)
        return labels, records, Counter(name for record in records for name in record.findings)

    labels, records, positives = read("chexpert_train.csv.gz")
    assert (len(records), len(labels.no_label), positives["Pneumonia"]) == (223_402, 12, 6_039)
    assert "Pneumonia 18,770" in labels.notes[0]
    views = Counter(record.view for record in records)
    assert (views["LL"], views["RL"]) == (16, 1)
    labels, records, _ = read("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz")
    assert len(records) + len(labels.no_label) == 160_861
    assert labels.notes[0] == "350 spellings of 194 labels once spaces are dropped, with 3,041 empty strings"
    assert labels.notes[1].startswith("103 cells without a list")
    labels, records, positives = read("vinbigdata-train.csv.gz")
    assert (len(records), positives[NO_FINDING]) == (15_000, 10_606) and "each of 3 readers" in labels.notes[0]
    _, records, positives = read("kaggle_stage_2_train_labels.csv.zip")
    assert (len(records), positives["Pneumonia"]) == (26_684, 6_012)
    _, records, positives = read("Data_Entry_2017_v2020.csv.gz")
    assert (len(records), positives["Hernia"]) == (112_120, 227)
