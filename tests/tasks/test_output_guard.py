"""Nobody's files are written over: a folder is new, empty or the command's own, and a file is one that the command wrote."""

import json
import shutil
from types import SimpleNamespace

import pytest

from ipu_trainer.atomic import write_json
from ipu_trainer.cli import main
from ipu_trainer.errors import UserError
from ipu_trainer.tasks import output_guard as guard
from ipu_trainer.tasks.chest_xray.data.imagefolder_metadata import refuse_foreign_metadata
from ipu_trainer.tasks.chest_xray.data.prepare import MANIFEST
from ipu_trainer.tasks.chest_xray.export import _refuse_foreign_files
from ipu_trainer.tasks.recipe import recipe
from ipu_trainer.tasks.reporting.html_document import Page, write_page
from ipu_trainer.tasks.run_record import METRICS_FILE, RUN_FILE
from ipu_trainer.tasks.search.search_command import SEARCH_FILE

RECORD = {"status": "finished", "task": "chest-xray"}
# What a folder may hold: files with their text, and the kind that they tell.
HELD = {
    "own files": ({"notes.txt": "mine", "plots/roc.png": "mine"}, None),
    "a model": ({"config.json": "{}", "model.safetensors": "weights"}, None),
    "a run without its record": ({"model.safetensors": "weights", "metrics.json": "{}", "README.md": "card"}, None),
    "another program's run.json": ({"run.json": '{"status": 1}'}, None),
    "a run": ({RUN_FILE: json.dumps(RECORD), METRICS_FILE: "{}"}, guard.RUN),
    "a search": ({SEARCH_FILE: '{"task": "chest-xray", "space": []}'}, guard.SEARCH),
    "prepared data": ({MANIFEST: '{"fingerprint": "f"}', "pixels.u8": "pixels"}, guard.PREPARED),
    "an evaluation": ({METRICS_FILE: '{"run": "r", "split": "test"}'}, guard.EVALUATION),
    "phantoms": ({"phantoms.csv": "", "images/a.png": ""}, guard.PHANTOMS),
    "a text run's corpus beside own files": (
        {"data/corpus.json": '{"settings": 1, "fingerprint": 1}', "a.txt": ""},
        None,
    ),
}
# Each with the kind that it is not refused for here: its own, and for `train` a search's, which flags alone do not tell from it.
COMMANDS = {
    "train": ("train chest-xray --data {there} --model {there} --output {output}", guard.SEARCH),
    "train language-modeling": ("train language-modeling --corpus {there} --output {output}", guard.RUN),
    "train seq2seq": ("train seq2seq --pairs {there} --output {output}", guard.RUN),
    "search": ("search chest-xray --data {there} --model {there} --output {output}", guard.SEARCH),
    "evaluate": ("evaluate chest-xray --run {there} --data {there} --output {output}", guard.EVALUATION),
    "prepare": ("prepare chest-xray --csv {table} --images {there} --output {output}", guard.PREPARED),
    "phantoms": ("phantoms chest-xray --output {output}", guard.PHANTOMS),
    "simulate": ("simulate --trace {output} no.py", guard.TRACES),
}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def state(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_somebody_else_is_refused_before_work_and_stays_as_it_was(command, tmp_path, capsys, monkeypatch):
    words, own = COMMANDS[command]
    (tmp_path / "table.csv").write_text("Image Index,Finding Labels\n")
    if command == "simulate":
        monkeypatch.setattr("ipu_trainer.simulator.install", lambda: pytest.fail("it went on"))
    for number, (name, (files, kind)) in enumerate(HELD.items()):
        folder = fill(tmp_path / str(number), files)
        assert guard.kind_of(folder) == kind, name
        if kind == own or (kind == guard.RUN and own == guard.SEARCH and command == "train"):
            continue
        (tmp_path / f"link{number}").symlink_to(folder)
        before = state(folder)
        for spelled in (folder, tmp_path / f"link{number}", tmp_path / "." / str(number) / ".." / str(number)):
            given = words.format(there=folder, table=tmp_path / "table.csv", output=spelled).split()
            assert main(given) == 1, name
            told = capsys.readouterr().err
            assert told.count("\n") == 1 and str(spelled) in told and ("Give a" in told), told
        assert state(folder) == before, name


def test_a_run_of_another_task_and_a_finished_search_are_no_output_of_a_training(tmp_path, capsys):
    run = fill(tmp_path / "run", HELD["a run"][0])
    assert main(["train", "seq2seq", "--pairs", "none.jsonl", "--output", str(run)]) == 1
    assert "is of chest-xray, and this command is of seq2seq" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds a search, and this command writes a run"):
        guard.check_output(fill(tmp_path / "search", HELD["a search"][0]), guard.RUN)
    job = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path / "search")))
    with pytest.raises(UserError, match=r"holds a search, and this command writes a run"):
        recipe.train(job)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        guard.check_output(tmp_path / "file", guard.RUN)


def test_what_a_system_a_scheduler_or_an_earlier_attempt_leaves_is_nobodys(tmp_path):
    folder = fill(
        tmp_path / "out", {".DS_Store": "", "slurm-1.out": "", "train.log": "", "plots/.a.png.abcd1234.tmp": ""}
    )
    guard.check_output(folder, guard.RUN)
    corpus = folder / "data"
    guard.claim(corpus, guard.CORPUS)
    (corpus / "train.npy").write_text("tokens")
    guard.check_output(folder, guard.RUN)
    (folder / "data" / guard.MARKER).unlink()
    with pytest.raises(UserError, match=r"\(data\)"):
        guard.check_output(folder, guard.RUN)


@pytest.mark.parametrize("kind", guard._KINDS, ids=lambda kind: kind.name)
def test_a_claimed_folder_is_its_kinds_whatever_lies_in_it_and_the_command_goes_on(kind, tmp_path):
    guard.claim(tmp_path / "new", kind)
    assert (tmp_path / "new" / guard.MARKER).is_file() is kind.keeps_marker
    if kind.keeps_marker:
        (tmp_path / "new" / "half.bin").write_text("half")
        guard.claim(tmp_path / "new", kind)
        others = [other for other in guard._KINDS if other is not kind]
        for other in others:
            with pytest.raises(UserError, match=f"holds {kind.name}, and this command writes {other.name}"):
                guard.check_output(tmp_path / "new", other)
        (tmp_path / "new" / guard.MARKER).write_text("{}")
        with pytest.raises(UserError, match="is damaged, or of another release"):
            guard.claim(tmp_path / "new", kind)


def test_a_file_that_a_command_did_not_write_stays(tmp_path, capsys):
    for name in ("mine.html", "mine.csv", "model.onnx", "mine.json"):
        (tmp_path / name).write_text('{"mine": 1}')
    before = state(tmp_path)
    run = fill(tmp_path / "run", {RUN_FILE: json.dumps(RECORD), METRICS_FILE: "{}"})
    for words in (
        ["report", str(run), "--output", str(tmp_path / "mine.html")],
        ["report", str(run), "--output", str(run)],
        ["predict", str(run), "no.png", "--output", str(tmp_path / "mine.csv")],
        ["predict", str(run), "no.png", "--output", str(tmp_path / "new.csv"), "--html", str(tmp_path / "mine.html")],
        ["plan", "--model", "none", "--system", "pod4", "--save", str(tmp_path / "mine.json")],
    ):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words[-1] in told and ("exists, and" in told or "is a folder" in told), told
    with pytest.raises(UserError, match=r"model.onnx exists, and this command did not write it"):
        _refuse_foreign_files(tmp_path / "model.onnx")
    shutil.rmtree(run)
    assert state(tmp_path) == before


def test_what_a_command_wrote_is_written_again(tmp_path, capsys):
    page = tmp_path / "report.html"
    for title in ("first", "second"):
        write_page(page, Page(title, "", "", []))
    assert "second" in page.read_text()
    table = tmp_path / "predictions.csv"
    table.write_text("file_name,findings,probability_Mass\na.png,,0.1\n")
    guard.check_output_file(table, guard.is_prediction_table)
    run = fill(tmp_path / "run", {RUN_FILE: json.dumps(RECORD)})
    assert main(["predict", str(run), str(table), "--output", str(tmp_path / "run" / ".." / "predictions.csv")]) == 1
    assert "is among the IMAGES" in capsys.readouterr().err
    write_json(tmp_path / "preprocessing.json", {"model": "a.onnx", "preprocessing": []})
    _refuse_foreign_files(tmp_path / "a.onnx")  # its model is missing, as after a kill
    (tmp_path / "a.onnx").write_text("model")
    _refuse_foreign_files(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"describes a.onnx. Give a file in another folder"):
        _refuse_foreign_files(tmp_path / "b.onnx")


def test_in_place_knows_its_own_metadata_from_a_users(tmp_path):
    own = {"file_name": "a.png", "labels": [0.0], "patient_id": "1", "age": 1, "sex": "F", "view": "PA", "follow_up": 0}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(own) + "\n")
    refuse_foreign_metadata(tmp_path, ["a.png"])
    for text in (json.dumps({"file_name": "a.png", "labels": [0.0]}), "null", "[" * 2000, "\xff"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / "metadata.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"train.metadata.jsonl, which it did not make"):
            refuse_foreign_metadata(tmp_path, ["a.png", "train/a.png"])
