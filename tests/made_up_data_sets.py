"""Small data sets in the folders, files and columns of the real ones: `docs/data_formats.md` is run on them."""

import csv
import gzip
import io
import json

import numpy as np
from PIL import Image

from ipu_trainer.tasks.chest_xray.data.label_formats.chexpert import CHEXPERT_FINDINGS
from ipu_trainer.tasks.chest_xray.data.label_formats.vindr import VINDR_FINDINGS
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, NO_FINDING

COUNT = 40
PATIENTS = [number // 2 for number in range(COUNT)]
FINDINGS = [
    ((NO_FINDING,), ("Edema",), ("Effusion", "Cardiomegaly"), ("Pneumonia",))[number % 4] for number in range(COUNT)
]


def film(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40), dtype=np.uint8))


def save_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        film(number).save(folder / name)


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *([row.get(name, "") for name in header] for row in rows)])


def chexpert_cells(number):
    names = [{"Effusion": "Pleural Effusion"}.get(name, name) for name in FINDINGS[number]]
    return {**dict.fromkeys(names, "1.0"), "Atelectasis": "-1.0" if names != [NO_FINDING] else ""}


def write_tutorial(folder):
    names = [f"{patient + 1:08d}_{number % 2:03d}.png" for number, patient in enumerate(PATIENTS)]
    save_images(folder / "images", names)
    lines = [
        {"file_name": name, "labels": [float(finding in findings) for finding in NIH_FINDINGS]}
        for name, findings in zip(names, FINDINGS)
    ]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def write_imagefolder(folder):
    parts = [("train", "validation", "test")[min(patient // 7, 2)] for patient in PATIENTS]
    names = [f"{part}/film{number}.png" for number, part in enumerate(parts)]
    save_images(folder, names)
    rows = [
        {"file_name": name, "labels": "|".join(findings), "patient_id": patient}
        for name, findings, patient in zip(names, FINDINGS, PATIENTS)
    ]
    write_table(folder / "metadata.csv", ["file_name", "labels", "patient_id"], rows)


def write_chexpert(folder):
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
    for part, start in (("train", 0), ("valid", 32)):
        chosen = range(start, 32 if start == 0 else COUNT)
        paths = [f"{part}/patient{PATIENTS[i]:05d}/study{i % 2 + 1}/view1_frontal.jpg" for i in chosen]
        save_images(folder, paths)
        about = {"Sex": "Female", "Age": "60", "Frontal/Lateral": "Frontal", "AP/PA": "AP"}
        rows = [{"Path": f"CheXpert-v1.0-small/{path}", **about, **chexpert_cells(i)} for path, i in zip(paths, chosen)]
        write_table(folder / f"{part}.csv", header, rows)


def write_chexpert_plus(folder):
    paths = [f"train/patient{PATIENTS[i]:05d}/study{i % 2 + 1}/view1_frontal" for i in range(COUNT)]
    save_images(folder / "PNG", [f"{path}.png" for path in paths])
    header = ["path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "report", "age",
              "sex", "split"]  # fmt: skip
    rows = [
        {"path_to_image": f"{path}.jpg", "frontal_lateral": "Frontal", "ap_pa": "PA", "deid_patient_id": f"patient{PATIENTS[i]:05d}",
         "patient_report_date_order": i % 2 + 1, "age": "50.0", "sex": "Male", "split": "train"}
        for i, path in enumerate(paths)
    ]  # fmt: skip
    write_table(folder / "df_chexpert_plus_240401.csv", header, rows)
    (folder / "chexbert_labels").mkdir()
    lines = [
        {"path_to_image": f"{path}.jpg", **{name: float(cell) for name, cell in chexpert_cells(i).items() if cell}}
        for i, path in enumerate(paths)
    ]
    (folder / "chexbert_labels" / "impression_fixed.json").write_text("\n".join(map(json.dumps, lines)))


def write_mimic(folder):
    ids = [(f"{i:08x}", f"100{PATIENTS[i]:05d}", f"5{i:07d}") for i in range(COUNT)]
    save_images(folder, [f"files/p10/p{subject}/s{study}/{image}.jpg" for image, subject, study in ids])
    labels = [
        {"subject_id": subject, "study_id": study, **chexpert_cells(i)} for i, (_, subject, study) in enumerate(ids)
    ]
    films = [
        {"dicom_id": image, "subject_id": subject, "study_id": study, "ViewPosition": "PA",
         "split": ("train", "validate", "test")[min(PATIENTS[i] // 7, 2)]}
        for i, (image, subject, study) in enumerate(ids)
    ]  # fmt: skip
    write_table(
        folder / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *sorted(CHEXPERT_FINDINGS)], labels
    )
    write_table(folder / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], films)
    write_table(
        folder / "mimic-cxr-2.0.0-metadata.csv.gz", ["dicom_id", "subject_id", "study_id", "ViewPosition"], films
    )


def vindr_names(number):
    names = {NO_FINDING: "No finding", "Effusion": "Pleural effusion"}
    return [names.get(name, name) for name in FINDINGS[number]]


def write_vindr(folder):
    for part, chosen in (("train", range(30)), ("test", range(30, COUNT))):
        save_images(folder, [f"{part}/{number:032x}.png" for number in chosen])
        readers = ("R1", "R2", "R3") if part == "train" else ("",)
        rows = [
            {"image_id": f"{i:032x}", "rad_id": reader, **dict.fromkeys(VINDR_FINDINGS, "0"), **dict.fromkeys(vindr_names(i), "1")}
            for i in chosen
            for reader in readers
        ]  # fmt: skip
        header = ["image_id", *(["rad_id"] if part == "train" else []), *VINDR_FINDINGS]
        write_table(folder / "annotations" / f"image_labels_{part}.csv", header, rows)


def write_vinbigdata(folder):
    save_images(folder / "train", [f"{number:032x}.png" for number in range(COUNT)])
    rows = [
        {"image_id": f"{i:032x}", "class_name": name, "class_id": 0, "rad_id": reader, "x_min": 1, "y_min": 1, "x_max": 9, "y_max": 9}
        for i in range(COUNT)
        for reader in ("R1", "R2", "R3")
        for name in vindr_names(i)
    ]  # fmt: skip
    write_table(folder / "train.csv", list(rows[0]), rows)


def write_padchest(folder):
    names = {NO_FINDING: "normal", "Effusion": "pleural effusion", "Edema": " pulmonary edema "}
    save_images(folder, [f"{i % 3}/{i}_abc.png" for i in range(COUNT)])
    header = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
              "Labels"]  # fmt: skip
    rows = [
        {"": i, "ImageID": f"{i}_abc.png", "ImageDir": i % 3, "StudyDate_DICOM": "20140915", "StudyID": f"9{i}",
         "PatientID": PATIENTS[i], "PatientBirth": "1950.0", "PatientSex_DICOM": "F", "Projection": "PA",
         "Labels": str([names.get(name, name.lower()) for name in FINDINGS[i]])}
        for i in range(COUNT)
    ]  # fmt: skip
    write_table(folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", header, rows)


def write_rsna(folder):
    save_images(folder, [f"stage_2_train_images/{number:08x}.png" for number in range(COUNT)])
    rows = [{"patientId": f"{i:08x}", "Target": int("Pneumonia" in FINDINGS[i])} for i in range(COUNT)]
    write_table(folder / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], rows)


def write_hugging_face(folder):
    import datasets

    def stored(number):
        out = io.BytesIO()
        film(number).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": None}

    rows = {
        "image": [stored(i) for i in range(COUNT)],
        "labels": [list(f) for f in FINDINGS],
        "patient_id": list(map(str, PATIENTS)),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.Sequence(datasets.Value("string")),
            "patient_id": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))


# By the name of the folder in the documentation.
DATA_SETS = {
    "tutorial": write_tutorial,
    "my_films": write_imagefolder,
    "CheXpert-v1.0-small": write_chexpert,
    "chexpert-plus": write_chexpert_plus,
    "mimic-cxr-jpg": write_mimic,
    "vindr-cxr": write_vindr,
    "vinbigdata": write_vinbigdata,
    "padchest": write_padchest,
    "rsna": write_rsna,
    "my_dataset": write_hugging_face,
}
