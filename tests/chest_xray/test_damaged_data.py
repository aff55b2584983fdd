"""Damage, mixed-up files and odd spellings: found by name before a result could change without a word."""

import csv
import errno
import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data import image_decoding as images
from ipu_trainer.tasks.chest_xray.data import pixel_store
from ipu_trainer.tasks.chest_xray.data.dataset import PreparedError, load_prepared
from ipu_trainer.tasks.chest_xray.data.image_folder import ImageFolder
from ipu_trainer.tasks.chest_xray.data.label_formats.cells import whole_number
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import patient_of, plain_name, study_of
from ipu_trainer.tasks.chest_xray.data.label_formats.table_file import TableFile
from ipu_trainer.tasks.chest_xray.data.pixel_store import StoreWriter
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import read_image_file
from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare
from ipu_trainer.tasks.chest_xray.data.splits import read_split_list
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import predictions_csv, read_predictions
from ipu_trainer.tasks.chest_xray.explain.pointing_game import read_boxes
from ipu_trainer.tasks.chest_xray.train import _PixelsChecked
from ipu_trainer.tasks.output_guard import PREPARED, claim


def encoded(image, form="PNG"):
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def flip_bit(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "text", ["13", "13.0", "13.", " 13 ", "'13", "\u200b13", "\ufeff13.00", "00000013", "１３", '"13"', "13\xa0"]
)
def test_one_patient_is_one_whatever_a_program_added(text):
    assert patient_of(text) == "13"
    assert study_of(text) == ("00000013" if text == "00000013" else "13")


def test_other_ids_stay_apart_and_missing_ones_are_none():
    ids = ["A-1", "A-01", "a-1", "1-A", "1", "13", "1.5", "1E5", "007-2"]
    assert [patient_of(name) for name in ids] == ids
    assert {patient_of(name) for name in ("", " ", "nan", "NaN", "None", "<NA>", "'", "\u200b")} == {""}
    assert (patient_of("1.23E+11"), patient_of("1.234E+2")) == ("123000000000", "1.234E+2")


def test_names_of_files_lose_the_same_in_tables_lists_and_boxes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    name = "\u200b'a.png\u200b"
    assert plain_name(name) == "a.png" and ImageFolder(tmp_path).locate(name) == "a.png"
    (tmp_path / "list.txt").write_text(f"{name}\n", encoding="utf-8")
    assert "a.png" in read_split_list(tmp_path / "list.txt")
    boxes = f"Image Index,Finding Label,Bbox [x,y,w,h]\n{name},Mass,1,1,2,2\n"
    (tmp_path / "boxes.csv").write_text(boxes, encoding="utf-8")
    assert list(read_boxes(tmp_path / "boxes.csv")) == ["a.png"]


def test_two_columns_of_one_name_are_one_while_they_agree(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("Patient ID,Image,patient_id\n1,a.png,1\n1,b.png,2\n")
    rows = TableFile(table).rows()
    assert next(rows)[1] == ["1", "a.png", "1"]
    with pytest.raises(UserError, match="line 3: two columns are called 'Patient ID', and one says '1', the other '2'"):
        next(rows)


def test_a_number_that_32_bits_do_not_hold_is_unknown():
    assert [whole_number(text) for text in ("1e308", "inf", "nan", "-3e9", "12.0")] == [None, None, None, None, 12]


def test_pipes_loops_and_names_that_are_no_utf_8_are_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    found = ImageFolder(tmp_path)
    assert found.files == {"loop.png"}  # which decoding rejects
    assert set(found.unusable) == {"pipe.png", "\\xff.png", "null.png"}
    with pytest.raises(images.ImageError, match="no regular file"):
        read_image_file(tmp_path / "pipe.png")


@pytest.mark.parametrize("fast", [True, False])
def test_no_flipped_bit_of_a_png_changes_its_pixels(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(images, "_decode_png", None)
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 5), dtype=np.uint8))
    for image in (gray, gray.convert("RGB")):
        content = encoded(image)
        for bit in range(8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                with images.reading_file():
                    found = images.decode_grayscale(bytes(damaged))
            except images.ImageError:
                continue
            assert np.array_equal(np.asarray(found), np.asarray(gray)), bit


def test_formats_colours_and_values_that_are_not_promised_are_named():
    floats = [Image.fromarray(np.array([[0, value]], dtype=np.float32)) for value in (np.nan, np.inf)]
    lab = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8), "RGB").convert("CMYK")
    assert np.asarray(images.decode_grayscale(encoded(lab, "TIFF"))).max() == 0
    for content, reason in (
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image of a format that is read"),
        (encoded(Image.new("L", (4, 4)), "GIF"), "not an image of a format that is read"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "colours of the kind LAB"),
        *((encoded(image, "TIFF"), "NaN or infinite") for image in floats),
    ):
        with pytest.raises(images.ImageError, match=reason):
            images.decode_grayscale(content)


def test_a_full_disk_is_said_before_images_are_decoded_and_nothing_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space for .* which 3 images at 16 pixels take"):
        StoreWriter(tmp_path / "pixels.u8", 3, 16, "bilinear", "Pillow", "plan")
    assert not list(tmp_path.iterdir())


def test_a_store_is_allocated_and_not_sparse_on_every_file_system(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    for name in ("allocated", "written"):
        writer = StoreWriter(tmp_path / name, 300, 64, "bilinear", "Pillow", "plan")
        status = writer.partial.stat()
        assert status.st_blocks * 512 >= status.st_size == 4096 + 300 * 64 * 64
        monkeypatch.setattr(pixel_store.os, "posix_fallocate", unknown)


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def change_manifest(folder, change):
    manifest = json.loads((folder / "prepared.json").read_text())
    change(manifest)
    (folder / "prepared.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: flip_bit(next((folder / "metadata").glob("*.arrow")), 3000), "labels and splits are not those"),
        (lambda folder: change_manifest(folder, lambda m: m["findings"].reverse()), "not what `prepare` wrote"),
        (lambda folder: change_manifest(folder, lambda m: m.pop("digests") and m.pop("digest")), "one is damaged"),
        (lambda folder: (folder / "prepared.json").write_text("[" * 100_000), "is not JSON"),
        (lambda folder: (folder / "prepared.json").write_text("null"), "null, not an object"),
        (lambda folder: (folder / "metadata" / "state.json").write_text("null"), "metadata is damaged"),
        (lambda folder: next((folder / "metadata").glob("*.arrow")).unlink(), "arrow is missing"),
    ],
)
def test_a_damaged_folder_is_not_opened(copy, damage, message):
    damage(copy)
    with pytest.raises(PreparedError, match=message):
        load_prepared(copy)


def test_a_folder_of_an_earlier_release_has_no_digests_and_is_read(copy, prepared):
    def earlier(manifest):
        for name in ("digest", "digests", "sources"):
            manifest.pop(name)

    change_manifest(copy, earlier)
    content = (copy / "pixels.u8").read_bytes()
    header = replace(pixel_store.read_header(copy / "pixels.u8"), pixels=None)
    (copy / "pixels.u8").write_bytes(header.to_bytes() + content[4096:])
    data = load_prepared(copy)
    data.pixel_check.wait()
    assert np.array_equal(data.everything.labels, load_prepared(prepared).everything.labels)


def test_damaged_pixels_end_a_training(copy):
    load_prepared(copy).pixel_check.wait()
    flip_bit(copy / "pixels.u8", 4096 + 5000)
    data = load_prepared(copy)
    callback = _PixelsChecked(data)
    with pytest.raises(PreparedError, match="pixels are not those that were written"):
        callback.on_train_end()
    with pytest.raises(PreparedError, match="pixels are not those that were written"):
        callback.on_step_end()


@pytest.fixture
def small(tmp_path):
    """Settings for 6 images of 6 patients."""
    (tmp_path / "images").mkdir()
    rows = [["Image Index", "Finding Labels", "Patient ID"]]
    for number in range(6):
        Image.fromarray(np.full((16, 16), number * 20, dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
        rows.append([f"{number}.png", "Mass" if number % 2 else "No Finding", number])
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return PrepareSettings(tmp_path / "table.csv", tmp_path / "images", tmp_path / "out", size=16, workers=1)


@pytest.mark.parametrize("name", ["metadata/state.json", "metadata.jsonl", "rejected.csv", "pixels.u8"])
def test_files_of_others_are_neither_removed_nor_written_over(small, name):
    path = small.output / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="holds files that this command did not make"):
        prepare(small, progress=False)
    assert path.read_text() == "mine" and [file for file in small.output.rglob("*") if file.is_file()] == [path]


def test_a_file_that_was_put_beside_a_refused_preparation_stays(small):
    claim(small.output, PREPARED)
    (small.output / "metadata.jsonl").write_text("mine")
    with pytest.raises(UserError, match="metadata.jsonl is there and no part of an unfinished preparation"):
        prepare(small, progress=False)
    assert (small.output / "metadata.jsonl").read_text() == "mine"


def test_already_prepared_is_said_of_a_whole_folder_with_the_same_images_alone(small):
    assert prepare(small, progress=False).finished and prepare(small, progress=False).reused
    image = small.images / "3.png"
    os.utime(image)  # a copy has another time and the same content
    assert prepare(small, progress=False).reused
    content = image.read_bytes()
    image.write_bytes(encoded(Image.fromarray(np.full((16, 16), 7, dtype=np.uint8))))
    with pytest.raises(UserError, match="images changed or are missing since"):
        prepare(small, progress=False)
    image.write_bytes(content)
    flip_bit(small.output / "pixels.u8", 4096)
    with pytest.raises(PreparedError, match="pixels are not those that were written"):
        prepare(small, progress=False)
    flip_bit(small.output / "pixels.u8", 4096)
    (small.output / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"metadata.jsonl is missing or damaged"):
        prepare(small, progress=False)


def test_predictions_that_are_no_probabilities_are_refused(tmp_path):
    table = {"file_name": ["a.png"], "patient_id": ["1"]}
    for value in ("1.500000", "inf"):
        text = predictions_csv(np.array([[1.0]]), np.array([[0.25]]), ["Mass"], table).replace("0.250000", value)
        (tmp_path / "predictions.csv").write_text(text)
        with pytest.raises(UserError, match="line 2: a label or a probability is not between 0 and 1"):
            read_predictions(tmp_path / "predictions.csv")
