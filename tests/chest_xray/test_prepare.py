import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ipu_trainer.cli import main
from ipu_trainer.tasks.chest_xray.data import decode_to_store as module
from ipu_trainer.tasks.chest_xray.data import image_decoding as images
from ipu_trainer.tasks.chest_xray.data.dataset import PreparedError, load_prepared
from ipu_trainer.tasks.chest_xray.data.pixel_store import StoreError, open_pixels, read_header
from ipu_trainer.tasks.chest_xray.data.pixels import image_limits
from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare
from ipu_trainer.tasks.output_guard import MARKER


@pytest.fixture
def settings(phantoms, tmp_path):
    return PrepareSettings(phantoms / "phantoms.csv", phantoms / "images", tmp_path / "out", size=32, workers=1)


def encode(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def gray_ramp(width=40, height=24):
    return np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_every_mode_of_the_same_grayscale_image_decodes_to_the_same_pixels(mode):
    gray = Image.fromarray(gray_ramp())
    if mode == "1":
        gray = gray.convert("1").convert("L")
    image = gray.convert(mode) if mode != "P" else gray.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    assert np.array_equal(np.asarray(images.decode_grayscale(encode(image))), np.asarray(gray))


def test_sixteen_bit_images_keep_their_high_byte():
    wide = gray_ramp().astype(np.uint16) * 257
    assert np.array_equal(np.asarray(images.decode_grayscale(encode(Image.fromarray(wide)))), gray_ramp())


@pytest.mark.skipif(images._decode_png is None, reason="kornia_rs is not installed")
def test_both_decoders_give_the_same_bytes(phantoms, monkeypatch):
    files = sorted((phantoms / "images").iterdir())[:10]
    fast = [images.load_grayscale(path, 32) for path in files]
    monkeypatch.setattr(images, "_decode_png", None)
    assert all(np.array_equal(a, images.load_grayscale(path, 32)) for a, path in zip(fast, files))


def test_pixels_are_those_of_vit_image_processor(phantoms):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False)
    for path in sorted((phantoms / "images").iterdir())[:10]:
        theirs = np.asarray(processor(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"])[0, 0]
        assert np.abs(theirs.astype(int) - images.load_grayscale(path, 32).astype(int)).max() == 0


def test_pixels_of_real_originals_are_those_of_vit_image_processor_within_one(nih_sample):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 224, "width": 224}, do_normalize=False, do_rescale=False)
    largest = 0
    for path in sorted((nih_sample / "original").iterdir()):
        theirs = np.asarray(processor(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"])[0, 0]
        largest = max(largest, int(np.abs(theirs.astype(int) - images.load_grayscale(path, 224).astype(int)).max()))
    assert largest <= 1


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file"),
        (b"this is text", "not an image"),
        (encode(Image.fromarray(gray_ramp(200, 200)))[:300], "broken"),
        (encode(Image.fromarray(gray_ramp(200, 200)).convert("RGB"), "JPEG")[:500], "broken or truncated"),
    ],
)
def test_a_bad_file_is_named_by_its_fault(content, reason):
    with pytest.raises(images.ImageError, match=reason):
        images.decode_grayscale(content)


def test_a_decompression_bomb_is_refused_before_it_is_inflated(monkeypatch):
    monkeypatch.setattr(image_limits, "MAX_PIXELS", 1000)
    with pytest.raises(images.ImageError, match="too large: 200 x 200"):
        images.decode_grayscale(encode(Image.fromarray(gray_ramp(200, 200))))


def test_prepared_data_holds_pixels_labels_and_patients(phantoms, prepared):
    data = load_prepared(prepared)
    everything = data.split("all")
    assert len(everything) == 120
    assert data.findings == sorted(data.findings)
    with (phantoms / "phantoms.csv").open() as file:
        rows = {row["Image Index"]: row for row in csv.DictReader(file)}
    for position in (0, 57, 119):
        row = rows[everything.table["file_name"][position]]
        labels = {name for name, value in zip(data.findings, everything.labels[position]) if value}
        assert labels == set(row["Finding Labels"].split("|"))
        assert everything.table["patient_id"][position] == row["Patient ID"]
        pixels = images.load_grayscale(phantoms / "images" / row["Image Index"], 32)
        assert np.array_equal(everything[position]["pixels"].numpy(), pixels)
    sizes = {split: len(data.split(split)) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 120
    assert sizes == {split: data.manifest["counts"][split]["images"] for split in sizes}


def test_bytes_do_not_depend_on_the_number_of_workers(settings, tmp_path):
    prepare(settings, progress=False)
    prepare(replace(settings, output=tmp_path / "two", workers=2), progress=False)
    assert (tmp_path / "two" / "pixels.u8").read_bytes() == (settings.output / "pixels.u8").read_bytes()
    assert load_prepared(tmp_path / "two").fingerprint == load_prepared(settings.output).fingerprint


def test_a_finished_folder_is_reused_and_other_settings_are_refused(settings):
    assert not prepare(settings, progress=False).reused
    assert prepare(settings, progress=False).reused
    with pytest.raises(ValueError, match="other settings"):
        prepare(replace(settings, size=48), progress=False)


def test_bad_files_stop_everything_unless_skipped(settings, phantoms, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(phantoms / "images", folder)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[3]).write_bytes(b"not an image")
    (folder / names[5]).write_bytes((folder / names[5]).read_bytes()[:200])
    (folder / names[7]).unlink()
    bad = replace(settings, images=folder)
    for only_present, rejected in ((False, [names[7]]), (True, [names[3], names[5]])):  # the table's, then the images'
        summary = prepare(replace(bad, only_present=only_present), progress=False)
        assert (summary.finished, summary.rejected) == (False, len(rejected))
        assert ("not decoded yet" in summary.describe()) is not only_present
        assert sorted(path.name for path in settings.output.iterdir()) == [MARKER, "rejected.csv"]
        with (settings.output / "rejected.csv").open() as file:
            assert sorted(row["file"] for row in csv.DictReader(file)) == rejected
    summary = prepare(replace(bad, skip_bad=True), progress=False)
    assert (summary.finished, summary.num_images, summary.rejected) == (True, 117, 3)
    kept = load_prepared(settings.output).split("all")
    assert names[3] not in kept.table["file_name"]
    last = kept.table["file_name"].index(names[-1])
    assert np.array_equal(kept[last]["pixels"].numpy(), images.load_grayscale(folder / names[-1], 32))


def test_a_table_of_nothing_but_bad_rows_is_listed_too(settings, tmp_path):
    table = tmp_path / "bad.csv"
    table.write_text("Image Index,Finding Labels,Patient ID\nnowhere.png,Mass,1\n")
    empty = tmp_path / "images"
    empty.mkdir()
    summary = prepare(replace(settings, csv=table, images=empty), progress=False)
    assert (summary.finished, summary.rejected) == (False, 1)
    with pytest.raises(ValueError, match="no image in common"):
        prepare(replace(settings, csv=table, images=empty, only_present=True), progress=False)
    with pytest.raises(ValueError, match="leaves no training image"):
        prepare(replace(settings, csv=table, images=empty, skip_bad=True), progress=False)
    assert sorted(path.name for path in settings.output.iterdir()) == [MARKER, "rejected.csv"]


def test_tasks_are_made_when_they_are_needed_and_results_keep_their_order(monkeypatch):
    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, _, task):
            future = Future()
            future.set_result([(row, path.encode(), None) for row, path in task])
            return future

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    made = []

    def tasks():
        for row in range(100):
            made.append(row)
            yield [(row, str(row))]

    seen = []
    for result in module._run(tasks(), ("", 100, 16, "bilinear", ""), 2):
        seen.append(result[0][0])
        assert len(made) - len(seen) < 2 * module._TASKS_AHEAD
    assert seen == list(range(100))


def test_a_killed_preparation_goes_on_where_it_was(settings, phantoms, tmp_path, monkeypatch):
    reference = tmp_path / "reference"
    prepare(replace(settings, output=reference), progress=False)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from ipu_trainer.tasks.chest_xray.data import image_decoding as images, prepare as p\n"
        "real = images.open_image\n"
        "def slow(content):\n"
        "    time.sleep(0.02)\n"
        "    return real(content)\n"
        "images.open_image = slow\n"
        "a, b, c = map(Path, sys.argv[1:])\n"
        "p.prepare(p.PrepareSettings(a, b, c, size=32, workers=1), progress=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, (settings.csv, settings.images, settings.output))]
    )
    journal = settings.output / "pixels.u8.journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.is_file() and np.frombuffer(journal.read_bytes(), np.uint8).reshape(-1, 17)[:, 0].sum() >= 32:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (settings.output / "prepared.json").exists()
    with pytest.raises(PreparedError, match="no finished data set"):
        load_prepared(settings.output)

    decoded = []
    real = images.open_image
    monkeypatch.setattr(images, "open_image", lambda content: decoded.append(1) or real(content))
    assert prepare(settings, progress=False).finished
    assert 0 < len(decoded) <= 120 - 32
    assert (settings.output / "pixels.u8").read_bytes() == (reference / "pixels.u8").read_bytes()


SPLIT_FOLDERS = {
    "flat": lambda name, number: name,
    "as NIH ships them": lambda name, number: f"images_{number % 3:03d}/images/{name}",
    "train and test": lambda name, number: f"{('train', 'test')[number % 5 == 0]}/{name}",
    "deeper": lambda name, number: f"all/{('train', 'valid')[number % 5 == 0]}/x{number % 2}/{name}",
    "train_images": lambda name, number: f"{('train_images', 'test_images')[number % 5 == 0]}/{name}",
}


@pytest.mark.parametrize("layout", list(SPLIT_FOLDERS))
@pytest.mark.parametrize("prepared_before", [False, True])
def test_in_place_metadata_is_loaded_by_imagefolder_for_a_multi_label_loss(
    settings, phantoms, tmp_path, layout, prepared_before
):
    import datasets
    import torch

    folder = tmp_path / "images"
    for number, path in enumerate(sorted((phantoms / "images").iterdir())[::4]):
        target = folder / SPLIT_FOLDERS[layout](path.name, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    more = replace(settings, images=folder, only_present=True)
    if prepared_before:
        prepare(more, progress=False)
    prepare(replace(more, in_place=True), progress=False)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == (1 if layout in ("flat", "as NIH ships them") else 2)
    data = load_prepared(settings.output).split("all")
    found = sorted(tuple(row["labels"]) for part in loaded.values() for row in part)
    assert found == sorted(map(tuple, data.labels.tolist())) and len(found) == 30
    labels = torch.tensor([row["labels"] for row in loaded["train"]])
    torch.nn.BCEWithLogitsLoss()(torch.zeros(labels.shape), labels)


def test_a_read_only_image_folder_works(settings, phantoms, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(phantoms / "images", folder)
    folder.chmod(0o555)
    try:
        assert prepare(replace(settings, images=folder), progress=False).finished
    finally:
        folder.chmod(0o755)


def test_a_damaged_store_is_refused_with_its_name(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    store = folder / "pixels.u8"
    whole = store.read_bytes()
    store.write_bytes(whole[:-100])
    with pytest.raises(StoreError, match="truncated"):
        load_prepared(folder)
    store.write_bytes(b"x" * len(whole))
    with pytest.raises(StoreError, match="no pixel store"):
        load_prepared(folder)
    store.write_bytes(whole.replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(StoreError, match="version 9"):
        load_prepared(folder)
    store.unlink()
    with pytest.raises(StoreError, match="missing"):
        load_prepared(folder)
    store.write_bytes(whole)
    (folder / "metadata" / "state.json").write_text("{")
    with pytest.raises(PreparedError, match="is damaged"):
        load_prepared(folder)


def test_metadata_is_a_datasets_folder(prepared):
    import datasets

    rows = datasets.load_from_disk(str(prepared / "metadata"))
    data = load_prepared(prepared).split("all")
    assert list(rows["file_name"]) == data.table["file_name"]
    assert np.array_equal(np.asarray(rows["labels"], dtype=np.float32), data.labels)


def test_header_says_what_the_store_holds(prepared):
    header = read_header(prepared / "pixels.u8")
    assert (header.version, header.size, header.resample, header.num_rows) == (1, 32, "bilinear", 120)
    assert open_pixels(prepared / "pixels.u8").shape == (120, 32, 32)
    assert header.source_hash == load_prepared(prepared).fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 4}, "outside 16 to 1024"),
        ({"resample": "cubic"}, "not one of"),
        ({"split": "random"}, "not one of"),
        ({"split": "official"}, "needs NIH's lists"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_work(settings, change, message):
    with pytest.raises(ValueError, match=message):
        replace(settings, **change)


def test_command_exits_with_one_and_names_the_list_of_rejects(settings, phantoms, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(phantoms / "images", folder)
    (folder / "stray.png").write_bytes(b"?")
    words = [
        "prepare",
        "chest-xray",
        "--csv",
        str(settings.csv),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--size", "32", "--workers", "1"]) == 1
    assert "rejected.csv" in capsys.readouterr().err
    assert main([*words, "--size", "32", "--workers", "1", "--skip-bad"]) == 0
    assert "120 images, 1 rejected" in capsys.readouterr().out
    assert main([*words, "--split", "random-images", "--size", "33", "--skip-bad", "--workers", "1"]) == 1
    assert "83.7 %" in capsys.readouterr().err


def test_sample_of_real_x_rays_is_prepared(nih_sample, tmp_path):
    settings = PrepareSettings(
        nih_sample / "official" / "Data_Entry_2017_v2020.csv.gz",
        nih_sample / "images",
        tmp_path / "out",
        nih_sample / "official" / "train_val_list.txt",
        nih_sample / "official" / "test_list.txt",
        size=64,
        only_present=True,
        workers=min(2, os.cpu_count() or 1),
    )
    summary = prepare(settings, progress=False)
    assert (summary.num_images, summary.manifest["counts"]["test"]["images"]) == (1050, 159)
    assert len(summary.manifest["findings"]) == 15
