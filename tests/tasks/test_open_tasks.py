"""Tasks that other packages add, the spelling of flags, and whose fault an error is."""

import configparser
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_documentation import SETUP

from ipu_trainer import cli, command_line
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.errors import UserError
from ipu_trainer.tasks import task as tasks

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that installs a package of one module, as pip would, with these entry points."""

    def install(name, source, **entries):
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        rows = [f"{task.replace('_', '-')} = {place}" for task, place in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{tasks.GROUP}]", *rows]))

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if not name.startswith(("ipu_trainer", "transformers", "torch")):
            sys.modules.pop(name)


def test_the_task_of_the_documentation_is_trained_by_the_command(package, tmp_path, capsys):
    page = (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "TASK = Task" in block)
    row = re.search(r"^    (sentence-pairs) = (\S+):TASK$", page, re.MULTILINE)
    assert row[2] == "my_package.sentence_pairs"
    package("sentence_pairs", SETUP["docs/tasks.md"] + block, sentence_pairs="sentence_pairs:TASK")
    flags = ["--output-dir", str(tmp_path / "run"), "--max_steps", "1", f"--{compat.field_name('use_cpu')}", "True"]
    assert cli.main(["train", "sentence-pairs", *flags]) == 0
    assert "train_loss" in capsys.readouterr().out
    assert cli.main(["search", "sentence-pairs"]) == 1
    assert "task sentence-pairs has no search. It has train." in capsys.readouterr().err


def test_a_task_that_is_broken_is_refused_by_name_and_the_others_work(package, capsys):
    package("broken", "raise RuntimeError('half installed')", broken_one="broken:TASK", other="broken_not:TASK")
    package("no_task", "TASK = 3", no_task="no_task:TASK")
    package("twice", "TASK = 3", seq2seq="twice:TASK")
    for name, message in (
        ("broken-one", "task 'broken-one' (broken:TASK) cannot be imported: RuntimeError: half installed."),
        ("other", "task 'other' (broken_not:TASK) cannot be imported: ModuleNotFoundError"),
        ("no-task", "no_task:TASK is a int, and not an ipu_trainer.tasks.task.Task"),
        ("seq2seq", "registered by ipu_trainer.tasks.seq2seq.train:TASK and twice:TASK. Uninstall one"),
        ("nothing", "task 'nothing' is not one of chest-xray, language-modeling, seq2seq, broken-one, no-task, other"),
    ):
        assert cli.main(["train", name]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "language-modeling" in capsys.readouterr().out
    assert tasks.load_task("language-modeling").search is not None


def test_the_tasks_of_this_package_are_registered_as_others_are_and_work_without_installation(monkeypatch):
    setup = configparser.ConfigParser()
    setup.read(str(REPOSITORY / "setup.cfg"))
    rows = setup["options.entry_points"][tasks.GROUP].strip().splitlines()
    assert dict(re.split(r"\s*=\s*", row) for row in rows) == tasks._BUILT_IN
    monkeypatch.setattr(tasks, "_registered", dict)
    assert tasks.task_names() == list(tasks._BUILT_IN)
    assert set(tasks.load_task("chest-xray").commands) == {"prepare", "evaluate", "predict", "export", "phantoms"}


@pytest.mark.parametrize("flag", ["--num_bootstrap", "--num-bootstrap"])
def test_both_spellings_are_one_flag(flag, tmp_path, capsys):
    words = ["--run", str(tmp_path), "--data", str(tmp_path), "--output", str(tmp_path / "out"), flag, "1"]
    assert cli.main(["evaluate", "chest-xray", *words]) == 1
    assert "must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["prepare", "chest-xray"], ["evaluate", "chest-xray"], ["phantoms", "chest-xray"], ["search", "seq2seq"], ["plan"], ["report"]],
    ids=" ".join,
)  # fmt: skip
def test_help_writes_one_spelling(words, capsys):
    if words[0] == "search":
        assert cli.main([*words, "--help"]) == 0
    else:
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
    assert not re.findall(r"--[a-z]+-[a-z]+", capsys.readouterr().out)


def test_flags_of_a_simulated_program_are_its_own_and_the_old_flag_of_coalescing_has_a_hint(
    tmp_path, capsys, monkeypatch
):
    from ipu_trainer import simulator

    seen = []
    monkeypatch.setattr(command_line, "_hinted", set())
    monkeypatch.setattr(simulator, "coalesce_micro_batches", seen.append)
    monkeypatch.setattr(simulator, "install", lambda: None)
    monkeypatch.setattr(simulator, "run_script", lambda script, arguments: seen.append(arguments))
    (tmp_path / "program.py").write_text("")
    for flag in ("--coalesce", "--fold"):
        assert cli.main(["simulate", flag, str(tmp_path / "program.py"), "--its-flag", "1"]) == 0
    assert seen == [True, ["--its-flag", "1"]] * 2
    assert capsys.readouterr().err == "hint: --fold is --coalesce now\n"


@pytest.mark.parametrize(
    ("wrong", "is_users"),
    [
        (lambda: np.zeros(3).reshape(2, 2), False),
        (lambda: int("three"), False),
        (lambda: (_ for _ in ()).throw(UserError("give 3")), True),
        (lambda: command_line.does_not_exist, None),
        (lambda: Path("nowhere.csv").read_text(), True),
    ],
)
def test_a_users_mistake_is_one_line_and_a_fault_of_ours_a_traceback(wrong, is_users, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_task", lambda name: tasks.Task(lambda flags: wrong()))
    if is_users is None:
        with pytest.raises(AttributeError):
            cli.main(["train", "x"])
        return
    assert cli.main(["train", "x"]) == 1
    error = capsys.readouterr().err
    assert ("Traceback" in error, "please report it" in error) == (not is_users, not is_users)
    assert (error.count("\n") == 1) == is_users
    monkeypatch.setenv("IPU_TRAINER_TRACEBACK", "1")
    with pytest.raises((ValueError, OSError)):
        cli.main(["train", "x"])


def test_files_that_are_no_json_are_named(tmp_path, capsys):
    for name, words in (
        ("config.json", ["profiles", "check", "one_ipu", "--model", str(tmp_path)]),
        ("run.json", ["report", str(tmp_path)]),
        ("best.json", ["train", "seq2seq", "--output", "x", "--config", str(tmp_path / "best.json")]),
    ):
        (tmp_path / name).write_text("{")
        assert cli.main(words) == 1
        assert f"{tmp_path / name} is not JSON" in capsys.readouterr().err
