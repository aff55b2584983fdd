"""Tables, lists and folders in the forms that they are passed on in: read right, or refused in one line before decoding."""

import codecs
import gzip

import numpy as np
import pytest
from PIL import Image

from ipu_trainer.cli import main
from ipu_trainer.tasks.chest_xray.data import image_decoding as images
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.label_table import read_label_table
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, NO_FINDING
from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare
from ipu_trainer.tasks.chest_xray.explain.pointing_game import read_boxes
from ipu_trainer.tasks.output_guard import MARKER

COLUMNS = [name for name in NIH_FINDINGS if name != NO_FINDING]
NAMES = [f"{patient:08d}_{visit:03d}.png" for patient in range(1, 11) for visit in range(2)]
PATIENTS = [str(int(name[:8])) for name in NAMES]
LABELS = [NO_FINDING if i % 3 == 0 else "|".join(sorted({COLUMNS[i % 14], COLUMNS[5 * i % 14]})) for i in range(20)]
HEADER = ["Image Index", "Finding Labels", "Patient ID"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


def write(path, rows, separator=",", encoding="utf-8", end="\n"):
    text = end.join(separator.join(str(cell) for cell in row) for row in rows)
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(text.encode(encoding)))
    return path


def plain_table(path, names=NAMES, labels=LABELS, patients=PATIENTS, **form):
    return write(path, [HEADER, *zip(names, labels, patients)], **form)


def column_table(path, header=None, values=("0", "1"), patients=PATIENTS, **form):
    head = header or ["Image", *COLUMNS, "PatientId"]
    cells = [[values[column in label.split("|")] for column in COLUMNS] for label in LABELS]
    return write(path, [head, *([name, *row, patient] for name, row, patient in zip(NAMES, cells, patients))], **form)


def settings_of(files, table, **more):
    return PrepareSettings(table, files / "images", files / "out", size=16, workers=1, **more)


def read(files, table, **more):
    found = read_label_table(table, files / "images", **more)
    assert found.rejections == ()
    return [(row.path, "|".join(row.findings), row.patient_id) for row in found.rows]


def expected():
    return list(zip(NAMES, LABELS, PATIENTS))


FORMS = {
    "a byte order mark": {"encoding": "utf-8-sig"},
    "PowerShell": {"encoding": "utf-16"},
    "big-endian": {"encoding": "utf-16-be"},
    "Excel in Europe": {"encoding": "utf-8-sig", "separator": ";", "end": "\r\n"},
    "tabs": {"separator": "\t"},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("packed", [False, True])
def test_a_table_is_read_whatever_program_saved_it(files, form, packed):
    values = FORMS[form]
    table = files / ("table.csv.gz" if packed else "table.csv")
    if values.get("encoding") == "utf-16-be":
        plain_table(files / "t.csv")
        content = codecs.BOM_UTF16_BE + (files / "t.csv").read_text().encode("utf-16-be")
        table.write_bytes(gzip.compress(content) if packed else content)
    else:
        plain_table(table, **values)
    assert read(files, table) == expected()


@pytest.mark.parametrize(
    "header", [["IMAGE INDEX", "finding_labels", "patientId"], ["image", "Labels", "Patient_ID"], ["File Name", "Finding Label", "subject_id"]]
)  # fmt: skip
def test_columns_are_known_in_any_case_with_spaces_or_underscores(files, header):
    assert read(files, write(files / "t.csv", [header, *zip(NAMES, LABELS, PATIENTS)])) == expected()


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda name: name.replace("_", " ")])
def test_findings_are_known_in_any_case_with_spaces_or_underscores(files, change):
    spelled = [change(cell) for cell in [*LABELS[:-1], "Pleural_Thickening"]]
    assert read(files, plain_table(files / "t.csv", labels=spelled))[-1][1] == "Pleural_Thickening"
    columns = column_table(files / "c.csv", ["Image Index", *map(change, COLUMNS), "Patient ID"])
    assert read(files, columns) == expected()


@pytest.mark.parametrize("values", [("0", "1"), ("0.0", "1.0"), ("False", "True")])
@pytest.mark.parametrize("form", ["a byte order mark", "tabs"])
def test_a_column_for_each_finding_is_read_as_the_labels_of_one_column(files, values, form):
    assert read(files, column_table(files / "t.csv", values=values, **FORMS[form])) == expected()


def test_columns_of_findings_give_the_store_that_labels_give(files):
    prepare(settings_of(files, plain_table(files / "t.csv")), progress=False)
    first = load_prepared(files / "out")
    again = PrepareSettings(column_table(files / "c.csv"), files / "images", files / "two", size=16, workers=1)
    prepare(again, progress=False)
    assert load_prepared(files / "two").fingerprint == first.fingerprint
    assert (files / "two" / "pixels.u8").read_bytes() == (files / "out" / "pixels.u8").read_bytes()


def test_a_column_of_no_finding_agrees_or_the_row_is_rejected(files):
    head = ["Image", "Edema", "No Finding", "Patient ID"]
    rows = [
        [NAMES[0], 0, 1, 1],
        [NAMES[1], 1, 0, 1],
        [NAMES[2], 0, 0, 2],
        [NAMES[3], 1, 1, 2],
        [NAMES[4], -1, 0, 3],
        [NAMES[5], "", 0, 3],
    ]
    found = read_label_table(write(files / "t.csv", [head, *rows]), files / "images")
    assert [row.findings for row in found.rows] == [("No Finding",), ("Edema",)]
    reasons = {item.line: item.reason for item in found.rejections}
    assert "no finding is 1, and 'No Finding' is 0 too" in reasons[4] and "together with" in reasons[5]
    assert "'-1' in the column Edema: only 0 and 1" in reasons[6] and "'' in the column Edema" in reasons[7]


def test_a_column_of_an_unknown_finding_is_not_dropped_silently(files):
    head = ["", "Image", "Edema", "Fracture", "Patient ID"]
    rows = [[i, name, i % 2, (i + 1) % 2, patient] for i, (name, patient) in enumerate(zip(NAMES, PATIENTS))]
    table = write(files / "t.csv", [head, *rows])
    with pytest.raises(ValueError, match="t.csv: the columns Fracture hold 0 and 1, .* --findings A,B"):
        read(files, table)
    for known in ((), ("Edema", "Fracture")):
        assert {labels for _, labels, _ in read(files, table, known=known)} == {"Edema", "Fracture"}


@pytest.mark.parametrize("cell", ["", "-1", "nan"])
def test_an_undecided_cell_rejects_its_row_and_takes_no_finding_away(files, cell):
    """It once took the whole column away: its sick images became healthy ones."""
    head = ["", "Image", "Edema", "Fracture", "Patient ID"]
    rows = [[i, name, i % 2, (i + 1) % 2, patient] for i, (name, patient) in enumerate(zip(NAMES, PATIENTS))]
    rows[0][3] = cell
    table = write(files / "t.csv", [head, *rows, [""] * 5])
    with pytest.raises(ValueError, match="the columns Fracture hold 0 and 1"):
        read(files, table)
    found = read_label_table(table, files / "images", known=())
    assert [(item.file, "in the column Fracture" in item.reason) for item in found.rejections] == [(NAMES[0], True)]
    assert {name for row in found.rows for name in row.findings} == {"Edema", "Fracture"}


def test_rows_that_name_the_same_labels_in_another_order_agree(files):
    head = ["Image Index", "Finding Labels", "Patient ID"]
    rows = [[name, "Edema|Mass", patient] for name, patient in zip(NAMES, PATIENTS)]
    table = write(files / "t.csv", [head, *rows, [NAMES[0], "mass|Edema", PATIENTS[0]]])
    assert len(read(files, table)) == len(NAMES)


@pytest.mark.parametrize(
    "head, message",
    [
        (["Image", "Age", "Patient ID"], "neither a column of labels .* nor one column of 0 and 1"),
        (["Image", "No Finding", "Patient ID"], "neither a column of labels"),
        (["Image", "Pleural Thickening", "Pleural_Thickening", "Patient ID"], "two columns for one finding"),
    ],
)
def test_a_table_without_labels_in_either_form_names_both_forms(files, head, message):
    table = write(files / "t.csv", [head, [NAMES[0], *[1] * (len(head) - 1)]])
    with pytest.raises(ValueError, match=message):
        read(files, table)


def test_one_patient_is_one_however_the_number_is_written(files):
    written = [["{}", "{}.0", " {:05d} ", "{:08d}", "{}."][i % 5].format(int(p)) for i, p in enumerate(PATIENTS)]
    assert read(files, plain_table(files / "t.csv", patients=written)) == expected()
    settings = settings_of(files, files / "t.csv", validation_fraction=0.4, test_fraction=0.2)
    prepare(settings, progress=False)
    table = load_prepared(files / "out").split("all").table
    assert len(set(table["split"])) == 3
    assert len(set(zip(table["patient_id"], table["split"]))) == len(set(PATIENTS))


def test_the_order_of_rows_changes_nothing_and_a_repeated_row_counts_once(files):
    prepare(settings_of(files, plain_table(files / "t.csv")), progress=False)
    order = [*range(19, -1, -1), 3, 3, 7]
    shuffled = [[column[i] for i in order] for column in (NAMES, LABELS, PATIENTS)]
    table = plain_table(files / "u.csv", *shuffled)
    summary = prepare(PrepareSettings(table, files / "images", files / "two", size=16, workers=1), progress=False)
    assert "3 repeated rows" in summary.describe()
    for name in ("pixels.u8", "metadata.jsonl"):
        assert (files / "two" / name).read_bytes() == (files / "out" / name).read_bytes()


def test_hidden_files_and_folders_are_no_images(files):
    for hidden in ("__MACOSX/images/._a.png", ".ipynb_checkpoints/b-checkpoint.png", "._c.png", "sub/.thumb/d.png"):
        (files / "images" / hidden).parent.mkdir(parents=True, exist_ok=True)
        (files / "images" / hidden).write_bytes(b"Mac OS X")
    (files / ".home").mkdir()
    (files / "images").rename(files / ".home" / "images")  # a folder that is given is read wherever it lies
    found = read_label_table(plain_table(files / "t.csv"), files / ".home" / "images")
    assert (len(found.rows), found.rejections) == (20, ())


LINES = {
    "plain": lambda name: name,
    "labels behind spaces": lambda name: f"{name} 0 1 0",
    "labels behind commas": lambda name: f"{name},0,1,0",
    "labels behind a tab": lambda name: f"{name}\t0 1",
    "quoted": lambda name: f'"{name}","Mass"',
    "paths": lambda name: f"images_001/images/{name} 1",
    "paths of Windows": lambda name: f"images\\{name}",
}


@pytest.mark.parametrize("form", list(LINES))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("below", ["", "images_001/images"])
def test_split_lists_are_read_with_whatever_follows_the_name(files, form, encoding, below):
    for name in NAMES if below else []:
        (files / "images" / below).mkdir(parents=True, exist_ok=True)
        (files / "images" / name).rename(files / "images" / below / name)
    lists = []
    for kind, test in (("train_val", False), ("test", True)):
        chosen = [name for name, patient in zip(NAMES, PATIENTS) if (int(patient) % 4 == 0) is test]
        lists.append(
            write(files / f"{kind}.txt", [[LINES[form](name)] for name in chosen], encoding=encoding, end="\r\n")
        )
    settings = settings_of(files, plain_table(files / "t.csv"), train_val_list=lists[0], test_list=lists[1])
    summary = prepare(settings, progress=False)
    assert (summary.num_images, summary.manifest["counts"]["test"]["images"]) == (20, 4)


def test_names_with_spaces_and_the_same_name_in_two_folders_are_told_apart(files):
    for folder in ("a", "b"):
        (files / "images" / folder).mkdir()
        for name in ("view 1.png", "view 2.png"):
            Image.new("L", (8, 8), 9).save(files / "images" / folder / name)
    for name in NAMES:
        (files / "images" / name).unlink()
    names = ["a/view 1.png", "a/view 2.png", "b/view 1.png", "b/view 2.png"]
    table = plain_table(files / "t.csv", names, ["Mass"] * 4, [1, 1, 2, 2])
    lists = [
        write(files / f"{folder}.txt", [[f"{name} 0 1"] for name in names if name[0] == folder]) for folder in "ab"
    ]
    summary = prepare(
        settings_of(files, table, train_val_list=lists[0], test_list=lists[1], validation_fraction=0.0), progress=False
    )
    assert {split: counts["images"] for split, counts in summary.manifest["counts"].items()} == {
        "train": 2,
        "validation": 0,
        "test": 2,
    }


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            [["00000001_000"], ["00000002_000"]],
            "no line of .*train_val.txt is the name of an image file; it begins with '00000001_000'",
        ),
        ([], "no line of .*train_val.txt .* it is empty"),
        ([["other.png"]], "train_val.txt and .* name none of the 20 images"),
    ],
)
def test_lists_of_something_else_are_refused_in_one_line_before_images_are_decoded(files, lines, message, monkeypatch):
    monkeypatch.setattr(images, "open_image", None)
    lists = [write(files / "train_val.txt", lines), write(files / "test.txt", [["another.png 1"]])]
    settings = settings_of(files, plain_table(files / "t.csv"), train_val_list=lists[0], test_list=lists[1])
    with pytest.raises(ValueError, match=message):
        prepare(settings, progress=False)
    assert not (files / "out").exists()


@pytest.mark.parametrize("fault", ["unknown label", "row without image", "image without row", "in neither list", "patient in both lists", "nobody to train on"])  # fmt: skip
def test_what_refuses_a_data_set_is_found_before_images_are_decoded(files, fault, monkeypatch, capsys):
    monkeypatch.setattr(images, "open_image", None)
    labels, names, more = list(LABELS), list(NAMES), []
    if fault == "unknown label":
        labels[4] = "Broken arm"
    elif fault == "row without image":
        names[4] = "nowhere.png"
    elif fault == "image without row":
        (files / "images" / "extra.png").write_bytes(b"")
    elif fault == "nobody to train on":
        more = ["--validation-fraction", "0.99", "--test-fraction", "0"]
    if "list" in fault:
        test = 4 if fault == "in neither list" else 3
        lists = [
            write(files / "a.txt", [[n] for n in NAMES[test:]]),
            write(files / "b.txt", [[n] for n in NAMES[2 * (test == 4) : test]]),
        ]
        more = ["--train-val-list", str(lists[0]), "--test-list", str(lists[1])]
    table = plain_table(files / "t.csv", names, labels)
    words = [
        "prepare",
        "chest-xray",
        "--csv",
        str(table),
        "--images",
        str(files / "images"),
        "--output",
        str(files / "out"),
    ]
    assert main([*words, "--size", "16", "--workers", "1", *more]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    left = sorted(path.name for path in (files / "out").iterdir()) if (files / "out").exists() else []
    assert left in ([], [MARKER, "rejected.csv"])


@pytest.mark.parametrize("form", ["a byte order mark", "PowerShell", "Excel in Europe"])
def test_boxes_are_read_whatever_program_saved_them(tmp_path, form):
    rows = [["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"], ["a.png", "Mass", 0, 512, 100, 100]]
    assert read_boxes(write(tmp_path / "boxes.csv", rows, **FORMS[form]))["a.png"][0].top == 0.5


def wide(largest, low=0, seed=0):
    """A 16-bit image whose values go from low to largest."""
    values = np.random.default_rng(seed).integers(low, largest + 1, (16, 16)).astype(np.uint16)
    values[0, :2] = low, largest
    return values


def prepared_pixels(files, arrays, workers=1, **more):
    for name, values in zip(NAMES, arrays):
        Image.fromarray(values).save(files / "images" / name)
    table = plain_table(files / "t.csv", NAMES[: len(arrays)], ["Mass"] * len(arrays), PATIENTS[: len(arrays)])
    for name in NAMES[len(arrays) :]:
        (files / "images" / name).unlink()
    settings = PrepareSettings(table, files / "images", files / "out", size=16, workers=workers, **more)
    summary = prepare(settings, progress=False)
    return np.asarray(load_prepared(files / "out").split("all").__getitems__(range(len(arrays)))["pixels"]), summary


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_white_is_what_the_bits_of_the_largest_value_hold(files, bits):
    arrays = [wide(2**bits - 1, seed=seed) for seed in range(4)]
    pixels, _ = prepared_pixels(files, arrays)
    for found, values in zip(pixels, arrays):
        assert np.array_equal(found, np.rint(values / ((2**bits - 1) / 255)).astype(np.uint8))
        assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dark_image_stays_dark_beside_its_neighbours_and_is_counted(files, workers):
    arrays = [wide(4095, seed=seed) for seed in range(18)] + [wide(200), wide(900)]
    pixels, summary = prepared_pixels(files, arrays, workers)
    assert [int(found.max()) for found in pixels[-3:]] == [255, round(200 / 4095 * 255), round(900 / 4095 * 255)]
    assert "20 images of more than 8 bits: the largest value is 4,095, so 4,095 is white" in summary.describe()
    assert "2 of these have much smaller values" in summary.describe() and "--window percentile" in summary.describe()


def test_a_percentile_window_scales_each_image_by_itself_as_the_summary_advises(files):
    """PadChest has 10-bit films among 12-bit ones."""
    arrays = [wide(4095, seed=1), wide(1023, seed=2), wide(1023, seed=3).astype(np.float32)]
    arrays[1][0, 0] = 0
    pixels, summary = prepared_pixels(files, arrays[:2], window="percentile")
    for found, values in zip(pixels, arrays):
        low, high = np.percentile(values, (0.5, 99.5), method="inverted_cdf").tolist()
        assert np.array_equal(found, np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255))
    assert "more than 8 bits" not in summary.describe() and summary.manifest["wide_images"] == {}
    assert summary.manifest["decoding"] == {"size": 16, "resample": "bilinear", "scale": None, "window": "percentile"}
    Image.fromarray(arrays[2]).save(files / "one.tif")
    found = images.Decoding(16, window="percentile")((files / "one.tif").read_bytes())
    low, high = np.percentile(arrays[2], (0.5, 99.5), method="inverted_cdf").tolist()
    assert np.array_equal(found, np.rint(np.clip((arrays[2].astype(float) - low) / (high - low), 0, 1) * 255))
    with pytest.raises(images.ImageError, match="no DICOM file, so it has no window"):
        images.Decoding(16, window="voi")((files / "one.tif").read_bytes())


def test_images_of_eight_bits_and_of_full_range_are_stored_as_ever(files):
    eight = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    full = wide(65535)
    pixels, _ = prepared_pixels(files, [eight, full])
    assert np.array_equal(pixels[0], eight) and np.array_equal(pixels[1], np.rint(full / 257.0).astype(np.uint8))


def test_floating_point_images_have_white_at_one_or_at_their_bits(files):
    for largest, white in ((1.0, 1.0), (3000.0, 4095.0)):
        values = np.linspace(0, largest, 256, dtype=np.float32).reshape(16, 16)
        Image.fromarray(values).save(files / "one.tif")
        found = np.asarray(images.decode_grayscale((files / "one.tif").read_bytes()))
        assert np.array_equal(found, np.rint(values.astype(np.float64) / (white / 255.0)).astype(np.uint8))


def test_values_of_more_than_sixteen_bits_are_refused(files):
    Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(files / "one.tif")
    with pytest.raises(images.ImageError, match="values up to 70,000"):
        images.value_range(images.open_image((files / "one.tif").read_bytes()))


def test_a_preparation_of_wide_images_that_was_killed_ends_with_the_same_bytes(files, monkeypatch):
    arrays = [wide(300, seed=seed) for seed in range(17)] + [wide(4095, seed=seed) for seed in range(3)]
    for name, values in zip(NAMES, arrays):
        Image.fromarray(values).save(files / "images" / name)
    table = plain_table(files / "t.csv")
    whole = PrepareSettings(table, files / "images", files / "whole", size=16, workers=1)
    summary_of_whole = prepare(whole, progress=False).describe()
    real, calls = images.open_image, []

    def killed(content):
        calls.append(1)
        if len(calls) in (18, 18 + 5 + 4):  # after the first chunk; then while images are scaled again
            raise KeyboardInterrupt
        return real(content)

    monkeypatch.setattr(images, "open_image", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(settings_of(files, table), progress=False)
    summary = prepare(settings_of(files, table), progress=False)
    assert len(calls) == 18 + 4 + 5 + 17
    assert summary.describe().replace(str(files / "out"), str(files / "whole")) == summary_of_whole
    assert (files / "out" / "pixels.u8").read_bytes() == (files / "whole" / "pixels.u8").read_bytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_tag_is_followed(files, form, orientation):
    upright = np.zeros((16, 24), dtype=np.uint8)
    upright[:8, :8], upright[8:, 16:] = 255, 128
    turns = {
        1: None,
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # tag -> the transposition that makes the file of the image
    stored = Image.fromarray(upright)
    if turns[orientation] is not None:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    tag = Image.Exif()
    tag[0x0112] = orientation
    stored.save(files / "one", form, exif=tag.tobytes(), **({"quality": 100} if form == "JPEG" else {}))
    found = np.asarray(images.decode_grayscale((files / "one").read_bytes()))
    assert np.abs(found.astype(int) - upright).max() < 8
