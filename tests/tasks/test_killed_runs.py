"""A run is finished when all its files are there: killed at any write, the same command completes what is missing."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from ipu_trainer.atomic import atomic_path, remove_leftovers, write_json
from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.reporting.run_report import report_or_reason
from ipu_trainer.tasks.run_record import finish_run

pytestmark = pytest.mark.usefixtures("plots_are_drawn_fast")

CPU = [f"--{compat.field_name('use_cpu')}", "true", "--disable_tqdm", "true", "--report_to", "none"]


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def status(folder):
    path = folder / "run.json"
    return json.loads(path.read_text())["status"] if path.is_file() else ""


def point_of(source, target, folder):
    """What is about to be written, by its name; run.json by what it is going to say."""
    name = os.path.relpath(target, folder)
    return f"run.json {json.loads(Path(source).read_text())['status']}" if name == "run.json" else name


def run_until(words, folder, survived, log):
    """Run a command in a process of its own that dies, as by a kill, at the first write that is not in `survived`."""
    child = os.fork()
    if child:
        return (
            os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if sys.version_info >= (3, 9)
            else os.waitpid(child, 0)[1] >> 8
        )
    code = 70
    try:
        real, passed = os.replace, set()

        def at(point):
            if point not in survived and point not in passed:
                log.write_text(point)
                os._exit(9)
            passed.add(point)

        def replace(source, target, **named):
            if str(target).startswith(str(folder)):
                at(point_of(source, target, folder))
            return real(source, target, **named)

        def dying(name, method):
            def call(*positional, **named):
                at(name)
                return method(*positional, **named)

            return call

        os.replace = replace
        for name in ("_save_checkpoint", "save_model"):
            setattr(transformers.Trainer, name, dying(name, getattr(transformers.Trainer, name)))
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1), os.dup2(devnull, 2)
        code = main(words)
    finally:
        os._exit(code)


def kill_everywhere(words, folder, log):
    """Kill the command at each of its writes in turn; returns the points and what was trained how often."""
    points = []
    while True:
        code = run_until(words, folder, points, log)
        if code == 0:
            return points
        assert code == 9, code
        assert status(folder) != "finished"
        points.append(log.read_text())
        assert len(set(points)) == len(points) < 60


def test_a_chest_x_ray_run_killed_at_each_write_ends_with_all_files_and_the_same_weights(prepared, phantoms, tmp_path):
    def words(run):
        given = ["--data", str(prepared), "--model", str(phantoms / "model"), "--output", str(run), "--max_steps", "2"]
        given += ["--num_bootstrap", "2", "--ema_decay", "0.5", *CPU]
        return ["train", "chest-xray", *given]

    assert main(words(tmp_path / "whole")) == 0
    run = tmp_path / "run"
    points = kill_everywhere(words(run), run, tmp_path / "log")
    first, last = points.index("run.json trained"), points.index("report.html")
    assert points[0] == "run.json running" and points[-1] == "run.json finished"
    assert {"_save_checkpoint", "save_model", "history.json"} <= set(points[:first])
    assert {"metrics.json", "predictions.csv", "plots/auroc.png", "README.md", "run.json evaluated"} <= set(
        points[first:last]
    )
    assert files_below(run) == files_below(tmp_path / "whole")
    whole, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
    assert all((whole[name] == other[name]).all() for name in whole)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "whole", run))
    assert first == second
    histories = [json.loads((folder / "history.json").read_text()) for folder in (tmp_path / "whole", run)]
    assert [entry["step"] for entry in histories[0]] == [entry["step"] for entry in histories[1]]


def test_a_preparation_killed_at_each_write_ends_with_the_same_files_and_decodes_once(phantoms, tmp_path, monkeypatch):
    from ipu_trainer.tasks.chest_xray.data import image_decoding as images

    def words(output):
        given = ["--csv", str(phantoms / "phantoms.csv"), "--images", str(phantoms / "images"), "--output", str(output)]
        return ["prepare", "chest-xray", *given, "--size", "32", "--workers", "1"]

    real, decoded = images.open_image, tmp_path / "decoded"

    def counted(content):
        with decoded.open("a") as log:
            log.write(".")
        return real(content)

    assert main(words(tmp_path / "whole")) == 0
    monkeypatch.setattr(images, "open_image", counted)
    points = kill_everywhere(words(tmp_path / "out"), tmp_path / "out", tmp_path / "log")
    assert set(points) >= {
        "rejected.csv",
        "metadata",
        "metadata.jsonl",
        "pixels.u8",
        "pixels.u8.partial",
        "prepared.json",
    }
    assert len(decoded.read_text()) == 120
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    for name in ("pixels.u8", "prepared.json", "metadata.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def text_words(task, tmp_path):
    (tmp_path / "text").mkdir()
    for package in range(6):
        (tmp_path / "text" / f"p{package}.txt").write_text("\n".join(f"x{i} = {i} + {package}" for i in range(60)))
    pairs = [{"source": f"number {i}", "target": f"{i}", "group": f"g{i % 6}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    small = [
        "--vocab-size",
        "300",
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
        "--per_device_train_batch_size",
        "4",
        *CPU,
    ]
    if task == "language-modeling":
        small += [
            "--corpus",
            str(tmp_path / "text"),
            "--model-overrides",
            "n_embd=16 n_head=2",
            "--sequence-length",
            "16",
        ]
        return [*small, "--prompts", "x1", "--sample-tokens", "2"]
    small += ["--pairs", str(tmp_path / "pairs.jsonl"), "--model-overrides", "d_model=16 d_kv=8 d_ff=16"]
    return [*small, "--source-length", "8", "--target-length", "6", "--validation-fraction", "0.3"]


@pytest.mark.parametrize("task", ["language-modeling", "seq2seq"])
def test_a_text_run_that_was_killed_after_its_training_is_completed_without_training(tmp_path, task, capsys):
    words = text_words(task, tmp_path)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(["train", task, "--output", str(whole), *words]) == 0
    points = kill_everywhere(["train", task, "--output", str(run), *words], run, tmp_path / "log")
    assert points[-3:] == ["run.json evaluated", "report.html", "run.json finished"]
    assert files_below(run) == files_below(whole)
    assert (load_file(run / "model.safetensors").keys()) == (load_file(whole / "model.safetensors").keys())
    histories = [json.loads((folder / "history.json").read_text()) for folder in (whole, run)]
    assert [entry["step"] for entry in histories[0]] == [entry["step"] for entry in histories[1]]


def test_a_run_without_its_report_gets_it_and_is_not_trained_again(prepared, phantoms, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    words = ["train", "chest-xray", "--data", str(prepared), "--model", str(phantoms / "model"), "--output", str(run)]
    words += ["--max_steps", "1", "--num_bootstrap", "2", *CPU]
    assert main(words) == 0
    record = json.loads((run / "run.json").read_text())
    before = (run / "model.safetensors").read_bytes()
    monkeypatch.setattr(transformers.Trainer, "train", None)
    # A command that corrects what concerns the evaluation completes the run too.
    for missing, more in (("trained", []), ("evaluated", ["--num_bootstrap", "3"])):
        (run / "report.html").unlink()
        write_json(run / "run.json", {**record, "status": missing})
        assert main([*words, *more]) == 0
        assert "resuming from the trained weights" in capsys.readouterr().out
        after = json.loads((run / "run.json").read_text())
        assert after["settings"]["recipe"].pop("num_bootstrap") == (3 if more else 2)
        assert (run / "report.html").is_file()
        assert {**after, "settings": None} == {**record, "settings": None}
        assert (run / "model.safetensors").read_bytes() == before
    write_json(run / "run.json", {**record, "status": "trained"})
    assert main([*words, "--learning_rate", "1"]) == 1
    assert "other settings (learning_rate" in capsys.readouterr().err
    assert (
        main(["evaluate", "chest-xray", "--run", str(run), "--data", str(prepared), "--output", str(tmp_path / "e")])
        == 1
    )
    assert "is not finished" in capsys.readouterr().err


def test_a_run_whose_report_cannot_be_written_is_not_finished(tmp_path, capsys):
    def full(folder):
        raise OSError(28, "No space left on device", str(folder))

    for report, status_after in ((full, "evaluated"), (lambda folder: folder, "finished"), (None, "finished")):
        finish_run(tmp_path, {"a": 1}, report and functools.partial(report_or_reason, report), b=2)
        assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1, "b": 2, "status": status_after}
    assert "no report.html: [Errno 28] No space left" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_removed_and_a_living_writers_file_stays(tmp_path):
    program = (
        "import sys, time; from ipu_trainer.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as file:\n"
        "    file.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / ".note.tmp").write_text("someone's own")
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "plots" / "a.json")], stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"writing\n"
    with atomic_path(tmp_path / "b.json") as own:
        remove_leftovers(tmp_path)
        assert own.is_file() and len(list((tmp_path / "plots").iterdir())) == 1
        own.write_text("whole")
    writer.kill()
    writer.wait()
    writer.stdout.close()
    time.sleep(0.01)
    remove_leftovers(tmp_path, below=False)
    assert len(list((tmp_path / "plots").iterdir())) == 1
    remove_leftovers(tmp_path)
    assert files_below(tmp_path) == [".note.tmp", "b.json"]


@pytest.mark.parametrize("command", ["prepare", "evaluate", "search"])
def test_the_next_command_removes_what_a_killed_one_left(prepared, phantoms, tmp_path, command):
    output, images = tmp_path / "out", tmp_path / "images"
    images.symlink_to(phantoms / "images") if command != "prepare" else images.mkdir()
    for path in sorted((phantoms / "images").iterdir())[:40] if command == "prepare" else []:
        (images / path.name).write_bytes(path.read_bytes())
    run = [
        "--data",
        str(prepared),
        "--model",
        str(phantoms / "model"),
        "--max_steps",
        "1",
        "--num_bootstrap",
        "2",
        *CPU,
    ]
    words = {
        "prepare": [
            "--csv",
            str(phantoms / "phantoms.csv"),
            "--images",
            str(images),
            "--size",
            "32",
            "--in-place",
            "--only-present",
        ],
        "evaluate": ["--run", str(tmp_path / "run"), "--data", str(prepared), "--num-bootstrap", "2"],
        "search": [*run, "--n-trials", "1", "--space", "weight_decay=0,0.1"],
    }[command]
    if command == "evaluate":
        assert main(["train", "chest-xray", *run, "--output", str(tmp_path / "run"), "--report", "false"]) == 0
    if command == "search":
        pytest.importorskip("optuna")
    left = [output / ".metrics.json.abcd1234.tmp", output / "plots" / ".roc.png.abcd_234.tmp"]
    left += [images / ".metadata.jsonl.abcd1234.tmp"] if command == "prepare" else []
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert main([command, "chest-xray", *words, "--output", str(output)]) == 0
    assert not [path for path in left if path.exists()]
    assert not [name for name in files_below(output) if re.search(r"\.tmp$|\.partial$|\.journal$|\.plan$", name)]
