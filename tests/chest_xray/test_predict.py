"""New images read by a finished run: the numbers of `evaluate`, bad files, interruptions, and what is refused."""

import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from html_pages import checked_page
from made_up_dicom import film
from PIL import Image
from safetensors.torch import load_file, save_file

import ipu_trainer
from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray import export, prediction_table
from ipu_trainer.tasks.chest_xray.data.image_decoding import ValueRange
from ipu_trainer.tasks.chest_xray.data.image_paths import find_images
from ipu_trainer.tasks.chest_xray.data.integrity.digests import with_digest
from ipu_trainer.tasks.chest_xray.model.predictor import Predictor
from ipu_trainer.tasks.chest_xray.predict import RunPredictor
from ipu_trainer.tasks.chest_xray.prediction_table import predict_to_csv


@pytest.fixture(scope="module")
def run(prepared, phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [
        "--num_train_epochs",
        "1",
        "--per_device_train_batch_size",
        "8",
        "--" + compat.field_name("use_cpu"),
        "True",
    ]
    flags += ["--disable_tqdm", "True", "--num_bootstrap", "10", "--report", "False", "--save_strategy", "no"]
    command = [
        "train",
        "chest-xray",
        "--data",
        str(prepared),
        "--model",
        str(phantoms / "model"),
        "--output",
        str(folder),
    ]
    assert main([*command, *flags]) == 0
    return folder


@pytest.fixture
def images(phantoms, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for path in sorted((phantoms / "images").iterdir())[:23]:
        shutil.copy(path, folder)
    return folder


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_prints_the_numbers_of_evaluate(run, prepared, phantoms, tmp_path, capsys):
    command = [
        "evaluate",
        "chest-xray",
        "--run",
        str(run),
        "--data",
        str(prepared),
        "--split",
        "all",
        "--num_bootstrap",
        "5",
    ]
    assert main([*command, "--output", str(tmp_path / "evaluation")]) == 0
    evaluated = {row["file_name"]: row for row in rows_of(tmp_path / "evaluation" / "predictions.csv")}
    assert main(["predict", "--output", str(tmp_path / "new.csv"), str(run), str(phantoms / "images")]) == 0
    assert "Not for clinical use" in capsys.readouterr().out
    predicted = rows_of(tmp_path / "new.csv")
    thresholds = json.loads((run / "run.json").read_text())["thresholds"]
    assert len(predicted) == len(evaluated) == 120
    for row in predicted:
        expected = evaluated[row["file_name"].rsplit("/", 1)[-1]]
        columns = [name for name in row if name.startswith("probability_")]
        assert [row[name] for name in columns] == [expected[name] for name in columns]
        found = set(row["findings"].split("|")) - {""}
        for name in columns:
            finding = name[len("probability_") :]
            if finding != "No Finding" and thresholds[finding] is not None:  # six digits are printed
                above = float(row[name]) >= thresholds[finding]
                assert (finding in found) == above or abs(float(row[name]) - thresholds[finding]) < 1e-6
    finished = {row["file_name"]: row for row in rows_of(run / "predictions.csv")}  # what training itself wrote
    assert all(finished[name]["probability_Mass"] == evaluated[name]["probability_Mass"] for name in finished)


def test_an_image_has_the_same_numbers_alone_and_among_others(run, images):
    predictor = RunPredictor(ipu_trainer.load_run(run))
    paths = find_images([str(images)])
    together = dict(predictor.stream(paths))
    for some in (paths[:1], paths[::-1], paths[5:12], paths[2:3] * 9):
        assert all(np.array_equal(row, together[path]) for path, row in predictor.stream(some))


def test_several_threads_give_the_numbers_of_one(run, images):
    predictor = RunPredictor(ipu_trainer.load_run(run))
    paths = find_images([str(images)])
    alone = list(predictor.stream(paths))
    predictor.predictor.num_threads = 3
    threaded = list(predictor.stream(paths))
    assert [path for path, _ in threaded] == paths
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(alone, threaded))
    assert torch.get_num_threads() == 3  # restored to what the predictor was made with
    torch.set_num_threads(1)


def test_python_predicts_paths_images_and_arrays(run, images):
    path = sorted(images.iterdir())[0]
    pixels = np.asarray(Image.open(path))
    found = ipu_trainer.load_run(run).predict(
        [path, str(path), Image.open(path), pixels, images / "none.png", pixels[None]]
    )
    assert found.file_names == (str(path), str(path), "image 2", "image 3")
    assert (found.probability == found.probability[0]).all() and found.probability.shape == (4, len(found.findings))
    assert set(found.rejected) == {str(images / "none.png"), "image 5"}
    assert "uint8 grayscale (height, width)" in found.rejected["image 5"]
    assert len(ipu_trainer.load_run(run).predict(path)) == 1


def test_the_folder_works_in_the_pipeline_of_transformers(run, images):
    from transformers import ImageClassificationPipeline, pipeline

    path = sorted(images.iterdir())[3]
    found = ipu_trainer.load_run(run).predict(path)
    expected = found.probability[0]
    if "function_to_apply" not in inspect.signature(ImageClassificationPipeline._sanitize_parameters).parameters:
        odds = expected / (1 - expected)  # transformers 4.29 takes a softmax of whatever model
        expected = odds / odds.sum()
    answers = pipeline("image-classification", model=str(run))(str(path), top_k=len(found.findings))
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[name] for name in found.findings] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "top_k=" in (run / "README.md").read_text()


def test_bad_files_are_named_and_skipped(run, images, tmp_path, capsys):
    names = sorted(path.name for path in images.iterdir())
    (images / names[2]).write_bytes(b"no image")
    (images / names[4]).write_bytes((images / names[4]).read_bytes()[:100])
    output = tmp_path / "o.csv"
    assert main(["predict", str(run), str(images), str(images / "gone*.png"), "--output", str(output)]) == 1
    assert not output.exists()
    assert main(["predict", str(run), str(images), "--output", str(output)]) == 3
    errors = capsys.readouterr().err
    assert f"skipped {images / names[2]}: not an image" in errors and f"{images / names[4]}: broken" in errors
    assert [row["file_name"].rsplit("/", 1)[-1] for row in rows_of(output)] == [
        name for name in names if name not in (names[2], names[4])
    ]
    for path in images.iterdir():
        path.write_bytes(b"")
    assert main(["predict", str(run), str(images), "--output", str(output)]) == 3
    assert rows_of(output) == [] and "... and 3 more" in capsys.readouterr().err


def test_a_prediction_that_was_interrupted_goes_on_where_it_was(run, images, tmp_path, monkeypatch):
    predictor, paths = RunPredictor(ipu_trainer.load_run(run)), find_images([str(images)])
    predict_to_csv(predictor, paths, tmp_path / "whole.csv", progress=False)
    real, read = RunPredictor.stream, []

    def dying(self, wanted):
        for number, outcome in enumerate(real(self, wanted)):
            if number == 9:
                raise KeyboardInterrupt
            read.append(outcome[0])
            yield outcome

    output = tmp_path / "o.csv"
    monkeypatch.setattr(RunPredictor, "stream", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict_to_csv(predictor, paths, output, progress=False)
        assert not output.exists()
    (partial,) = tmp_path.glob(".o.csv.*.partial")
    with partial.open("ab") as file:
        file.write(b'["half')  # a kill in the middle of a line
    monkeypatch.setattr(
        RunPredictor, "stream", lambda self, wanted: (read.append(p) or (p, o) for p, o in real(self, wanted))
    )
    predict_to_csv(predictor, paths, output, progress=False)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert read == paths  # each of them once
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["o.csv", "whole.csv"]


def test_other_settings_begin_again(run, images, tmp_path, monkeypatch):
    predictor, paths = RunPredictor(ipu_trainer.load_run(run)), find_images([str(images)])
    other = tmp_path / ".o.csv.0123.partial"
    other.write_bytes(b'["some", null, "", "0.5"]\n')
    before = prediction_table._identity(predictor, paths)
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(paths[0])
    assert prediction_table._identity(predictor, paths) != before
    predict_to_csv(predictor, paths, tmp_path / "o.csv", progress=False)
    assert other.exists()  # of another command, which may go on later
    assert len(rows_of(tmp_path / "o.csv")) == len(paths)


def test_two_processes_do_not_write_one_file(run, images, tmp_path):
    predictor, paths = RunPredictor(ipu_trainer.load_run(run)), find_images([str(images)])
    partial = tmp_path / f".o.csv.{prediction_table._identity(predictor, paths)}.partial"
    program = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(partial)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is writing"):
            predict_to_csv(predictor, paths, tmp_path / "o.csv", progress=False)
        holder.stdin.close()
    predict_to_csv(predictor, paths, tmp_path / "o.csv", progress=False)  # its lock ended with it
    assert len(rows_of(tmp_path / "o.csv")) == len(paths)


def test_a_killed_prediction_goes_on_at_once(run, phantoms, tmp_path):
    """Its decoding processes live a few seconds longer than it does: they must not keep the file."""
    output = tmp_path / "o.csv"
    program = (
        "import sys, time; from ipu_trainer.cli import main\n"
        "from ipu_trainer.tasks.chest_xray.data import image_decoding as d\n"
        "real = d.open_image\n"
        "d.open_image = lambda content: time.sleep(0.1) or real(content)\n"
        "main(['predict', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", program, str(run), str(phantoms / "images"), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(path.stat().st_size for path in tmp_path.glob(".o.csv.*.partial")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not output.exists()
    assert main(["predict", str(run), str(phantoms / "images"), "--output", str(output)]) == 0
    assert len(rows_of(output)) == 120


def test_few_images_are_in_memory_at_a_time(run):
    predictor = RunPredictor(ipu_trainer.load_run(run)).predictor
    made = [0]

    def chunks():
        for _ in range(50):
            made[0] += 1
            yield [np.zeros((32, 32), dtype=np.uint8)] * 4

    for done, _ in enumerate(predictor._computed(chunks()), start=1):
        assert made[0] - done <= 3
    assert made == [50]


def test_what_is_no_prediction_is_not_overwritten(run, images, tmp_path, capsys):
    mine, table, blob = tmp_path / "mine.csv", tmp_path / "table.csv", tmp_path / "blob"
    mine.write_text("a,b\n1,2\n")
    table.write_text("file_name,findings,patient_id\n")
    blob.write_bytes(b"x" * 200_000)
    for output, reason in (
        (mine, "did not write it"),
        (table, "did not write it"),
        (blob, "did not write it"),
        (run / "predictions.csv", "did not write it"),
        (images, "is a folder"),
    ):
        before = output.read_bytes() if output.is_file() else None
        assert main(["predict", str(run), str(images), "--output", str(output)]) == 1
        assert reason in capsys.readouterr().err
        assert before is None or output.read_bytes() == before


def test_what_is_no_finished_run_is_refused(run, phantoms, images, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    record = json.loads((run / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({**record, "status": "running"}))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "run.json").write_text(json.dumps({**record, "task": "language-modeling"}))
    for folder, reason in (
        (phantoms / "model", "holds no run"),
        (unfinished, "is not finished"),
        (other, "task language-modeling has no predict"),
        (tmp_path / "nowhere", "holds no run"),
    ):
        assert main(["predict", str(folder), str(images)]) == 1
        assert reason in capsys.readouterr().err
    with pytest.raises(UserError, match="has no predict"):
        ipu_trainer.load_run(other).predict(sorted(images.iterdir()))
    with pytest.raises(SystemExit) as help_text:
        main(["predict", "--help"])
    assert help_text.value.code == 0


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors, next(name for name in sorted(tensors) if name.endswith("dense.weight")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(name, **values):
    def change(folder):
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**held, **values}))

    return change


def change_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def in_weights(change):
    return lambda folder: change_weights(folder, change)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (in_weights(lambda tensors, name: tensors.pop(name)), "1 of its .* tensors are not there, such as vit"),
        (in_weights(lambda tensors, name: tensors.update(x=tensors.pop(name))), "1 of its .* tensors are not there"),
        (in_weights(lambda tensors, name: tensors.update({name: tensors[name][:-1]})), "1 of .* have another shape"),
        (in_weights(lambda tensors, name: tensors.update(x=tensors[name] + 0)), "1 tensors .* no place for, such as x"),
        (in_weights(lambda tensors, name: tensors.update({name: tensors[name].half()})), r"another type .*\(F16\)"),
        (in_weights(lambda tensors, name: tensors[name].fill_(float("nan"))), "1 tensors hold NaN or infinity"),
        (in_weights(lambda tensors, name: tensors.clear()), "num_hidden_layers 3, but its weights have 0 tensors"),
        (change_bytes("model.safetensors", lambda content: content[:-5]), "model.safetensors cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (change_json("config.json", num_hidden_layers=2), "no place for, such as vit"),
        (change_json("config.json", num_hidden_layers=4), "tensors are not there"),
        (change_json("config.json", num_hidden_layers=10**9), "num_hidden_layers 1000000000, but its weights have"),
        (
            change_json("config.json", num_hidden_layers="3"),
            'config.json: num_hidden_layers is "3", not a whole number',
        ),
        (change_json("config.json", hidden_size=48), "have another shape"),
        (change_json("config.json", hidden_size=0), "config.json: hidden_size 0 must be from 1"),
        (change_json("config.json", id2label={"0": "Mass"}), "2 of .* have another shape, such as classifier.bias"),
        (change_bytes("config.json", lambda content: content[:99]), "config.json is not JSON"),
        (change_json("preprocessor_config.json", image_mean=None), "preprocessor_config.json: image_mean is null"),
        (change_json("preprocessor_config.json", image_std=[0.4] * 3), "trained with"),
        (change_json("run.json", thresholds={}), "run.json: thresholds has no 'Atelectasis'"),
        (change_json("run.json", findings=None), "run.json: findings is null, not a list of a text"),
        (change_bytes("run.json", lambda content: b"[]"), r"run.json: its content is \[\], not an object"),
    ],
)
def test_a_damaged_run_is_refused_with_file_rule_and_next_move(run, images, tmp_path, damage, reason, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    damage(folder)
    assert main(["predict", str(folder), str(images), "--output", str(tmp_path / "new.csv")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("ipu-trainer: ") and str(folder) in line and re.search(reason, line), line
    assert not (tmp_path / "new.csv").exists()


def test_weights_have_the_mode_of_other_new_files(run):
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.iterdir() if path.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_images_are_named_by_files_folders_patterns_and_tables(images, tmp_path):
    names = sorted(path.name for path in images.iterdir())
    (images / ".hidden.png").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    below = images / "below"
    below.mkdir()
    shutil.copy(images / names[0], below / "z.PNG")
    table = images / "list.csv"
    table.write_text(f"Image Index,Patient\n{names[1]},1\nbelow/z.PNG,2\n,3\n")
    everything = [str(images / name) for name in names] + [str(below / "z.PNG")]
    assert find_images([str(images)]) == everything
    assert find_images([str(images / "*.png")]) == everything[:-1]
    assert find_images([str(table), everything[2], everything[1]]) == [everything[1], everything[-1], everything[2]]
    assert find_images([str(images / "notes.txt")]) == [str(images / "notes.txt")]  # a file that is named is tried


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("file_name\n../secret.png\n", "leaves the folder"),
        ("file_name\n/etc/passwd\n", "leaves the folder"),
        ("a,b\n1,2\n", "no column of file names"),
        ("file_name\n", "names no image"),
        ("", "no column of file names"),
    ],
)
def test_a_table_that_names_no_images_or_others_is_refused(content, reason, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(content)
    with pytest.raises(UserError, match=reason):
        find_images([str(table)])


@pytest.mark.parametrize("word", ["none.png", "*.gif", "."])
def test_a_word_that_names_nothing_is_refused(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_images([word])


def test_half_precision_on_a_cpu_is_refused(run):
    with pytest.raises(UserError, match="fp16 is for a GPU"):
        Predictor(torch.nn.Linear(1, 1), None, "fp16", "cpu")


def test_the_exported_model_predicts_what_the_run_does(run, images, capsys):
    import onnxruntime

    assert main(["export", str(run), "--to", "onnx"]) == 0
    assert "on 8 images" in capsys.readouterr().out
    about = json.loads((run / "onnx" / "preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(str(run / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    paths = find_images([str(images)])[:5]
    side = about["input"]["shape"][2]
    resample = {"bilinear": Image.Resampling.BILINEAR}[about["decoding"]["resample"]]
    gray = np.stack([np.asarray(Image.open(path).convert("L").resize((side, side), resample)) for path in paths])
    mean, std = (np.array(about[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
    pixel_values = (gray[:, None].astype(np.float32) / 255 - mean) / std
    found = session.run(None, {about["input"]["name"]: pixel_values})[0]
    expected = ipu_trainer.load_run(run).predict(paths)
    assert about["findings"] == list(expected.findings)
    assert np.abs(found - expected.probability).max() < 1e-5


def test_an_export_that_cannot_be_checked_is_not_written(run, images, tmp_path, monkeypatch, capsys):
    output = tmp_path / "onnx" / "model.onnx"
    command = ["export", str(run), "--to", "onnx", "--output", str(output), "--images", str(images)]
    monkeypatch.setattr(export, "LARGEST_DIFFERENCE", -1.0)
    assert main(command) == 1
    assert "differ from PyTorch's by" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    record = json.loads((run / "run.json").read_text())
    record["data"]["folder"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(record))
    assert main(["export", str(moved), "--to", "onnx", "--output", str(output)]) == 1
    assert "--images FOLDER" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command) == 1
    assert "pip install 'ipu-trainer[export]'" in capsys.readouterr().err


def test_a_page_shows_images_with_their_findings(run, images, tmp_path, capsys):
    names = sorted(path.name for path in images.iterdir())
    (images / names[1]).write_bytes(b"no image")
    page = tmp_path / "page.html"
    command = ["predict", str(run), str(images), "--output", str(tmp_path / "o.csv"), "--html", str(page)]
    assert main([*command, "--html_images", "4"]) == 3
    found = checked_page(page)
    assert "Not for clinical use" in found.text and "synthetic phantoms" in found.text
    assert "The first 4 of 23 images" in found.text and "not an image" in found.text
    first = rows_of(tmp_path / "o.csv")[0]
    assert names[0] in found.text and names[5] not in found.text
    assert all(finding in found.text for finding in first["findings"].split("|"))
    assert page.read_text().count("data:image/") == 2 * 3  # an image and a map for each of three
    assert main([*command, "--html_images", "0"]) == 1
    capsys.readouterr()
    assert main(["predict", str(run), str(images), "--html_images", "4"]) == 1  # it would be ignored
    assert "--html FILE" in capsys.readouterr().err


def test_dicom_films_are_predicted_as_their_pixels(run, images, tmp_path):
    folder = tmp_path / "pacs"
    folder.mkdir()
    path = sorted(images.iterdir())[0]
    pixels = np.asarray(Image.open(path).convert("L"))
    (folder / "1.2.840.7").write_bytes(film(pixels))  # a UID: DICOM by its content
    (folder / "negative.dcm").write_bytes(film(255 - pixels, kind="MONOCHROME1"))
    (folder / "notes").write_text("no image")
    found = ipu_trainer.load_run(run).predict(find_images([str(folder)]))
    wanted = ipu_trainer.load_run(run).predict(path)
    assert len(found) == 2 and (found.probability == wanted.probability).all()


def test_an_evaluation_says_that_its_images_were_prepared_otherwise(run, prepared, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    manifest = json.loads((other / "prepared.json").read_text())
    command = [
        "evaluate",
        "chest-xray",
        "--run",
        str(run),
        "--num_bootstrap",
        "5",
        "--output",
        str(tmp_path / "o"),
        "--data",
    ]
    assert main([*command, str(other)]) == 0
    assert "--window" not in capsys.readouterr().err
    manifest["decoding"]["window"] = "percentile"
    (other / "prepared.json").write_text(json.dumps(with_digest(manifest)))
    assert main([*command, str(other), "--precision", "fp32"]) == 0
    assert "trained on images prepared with --window auto" in capsys.readouterr().err


def test_a_film_outside_of_the_scale_of_the_run_is_named_and_not_whitened(run, tmp_path):
    predictor = RunPredictor(ipu_trainer.load_run(run))
    predictor.decoding = replace(predictor.decoding, scale=ValueRange(whole=4000.0))
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name, values in (("12.png", ramp), ("16.png", ramp * 16)):
        Image.fromarray(values).save(tmp_path / name)
    found = predictor.predict([tmp_path / "12.png", tmp_path / "16.png"])
    assert [name.rsplit("/", 1)[-1] for name in found.file_names] == ["12.png"]
    assert "values up to 65,520, where 4,095 is white" in found.rejected[str(tmp_path / "16.png")]


def test_one_odd_file_does_not_end_the_others(run, images, tmp_path):
    Image.new("LAB", (40, 40)).save(images / "lab.tiff")
    found = ipu_trainer.load_run(run).predict(find_images([str(images)]))
    assert len(found) == 23 and "LAB" in found.rejected[str(images / "lab.tiff")]


def test_a_pillow_image_is_turned_as_its_file_is(run, images, tmp_path):
    image = Image.open(sorted(images.iterdir())[0]).convert("L").resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = ipu_trainer.load_run(run).predict([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")])
    assert (found.probability[0] == found.probability[1]).all()
