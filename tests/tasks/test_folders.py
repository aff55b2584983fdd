"""PUBLIC_DATASETS_DIR, DATASETS_DIR and CHECKPOINT_DIR stand in for flags that are left out; data mounts are only read."""

import csv
import json
import shutil

import pytest

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks import folders
from ipu_trainer.tasks.chest_xray import commands as nih_paths

VARIABLES = (folders.PUBLIC_DATASETS_DIR, folders.DATASETS_DIR, folders.CHECKPOINT_DIR)
TRAIN = [
    "--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--num_bootstrap", "20", "--disable_tqdm", "true",
    "--backend", "host", f"--{compat.field_name('use_cpu')}", "true",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mounted(phantoms, tmp_path, monkeypatch):
    """NIH's layout on a mount, with both lists; DATASETS_DIR and CHECKPOINT_DIR elsewhere."""
    nih = tmp_path / "mount" / nih_paths.FOLDER
    nih.mkdir(parents=True)
    shutil.copytree(str(phantoms / "images"), str(nih / "images"))
    shutil.copy(str(phantoms / "phantoms.csv"), str(nih / "Data_Entry_2017_v2020.csv"))
    shutil.copytree(str(phantoms / "model"), str(tmp_path / "mount" / "model"))
    with (nih / "Data_Entry_2017_v2020.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, tested in (("train_val_list.txt", False), ("test_list.txt", True)):
        chosen = [row["Image Index"] for row in rows if (int(row["Patient ID"]) % 4 == 0) == tested]
        (nih / name).write_text("\n".join(chosen))
    monkeypatch.setenv(folders.PUBLIC_DATASETS_DIR, str(tmp_path / "mount"))
    monkeypatch.setenv(folders.DATASETS_DIR, str(tmp_path / "data"))
    monkeypatch.setenv(folders.CHECKPOINT_DIR, str(tmp_path / "runs"))
    return tmp_path


def state(folder):
    """Names, bytes and times of everything below: root may write anywhere, so permissions would prove nothing."""
    files = sorted(folder.rglob("*"))
    return [
        (str(path), path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in [folder, *files]
    ]


def test_prepare_train_and_evaluate_without_a_folder_and_nothing_is_written_on_the_mount(mounted, capsys):
    mount = mounted / "mount"
    for path in [mount, *mount.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state(mount)
    assert main(["prepare", "chest-xray", "--size", "32", "--workers", "1", "--validation-fraction", "0.2"]) == 0
    told = capsys.readouterr().out
    assert f"--test_list {mount / nih_paths.FOLDER / 'test_list.txt'}" in told  # what stands in is said
    manifest = json.loads((mounted / "data" / "chest-xray" / "prepared.json").read_text())
    assert manifest["split"]["method"] == "official"
    assert main(["train", "chest-xray", "--model", str(mount / "model"), *TRAIN]) == 0
    assert json.loads((mounted / "runs" / "chest-xray" / "run.json").read_text())["status"] == "finished"
    assert main(["evaluate", "chest-xray", "--num-bootstrap", "20"]) == 0
    assert (mounted / "runs" / "chest-xray-test" / "metrics.json").is_file()
    assert state(mount) == before


def test_prepared_data_on_a_read_only_mount_is_trained_on_and_left_alone(prepared, phantoms, tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    shutil.copytree(str(prepared), str(mount / "chest-xray"))
    for path in [mount, *mount.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state(mount)
    monkeypatch.setenv(folders.PUBLIC_DATASETS_DIR, str(mount))
    monkeypatch.setenv(folders.CHECKPOINT_DIR, str(tmp_path / "runs"))
    assert main(["train", "chest-xray", "--model", str(phantoms / "model"), *TRAIN]) == 0
    used = json.loads((tmp_path / "runs" / "chest-xray" / "run.json").read_text())["settings"]["recipe"]["data"]
    assert used == str(mount / "chest-xray")
    assert state(mount) == before


def test_flags_that_are_given_count_instead_of_the_variables(mounted, phantoms, capsys):
    given = ["--csv", str(phantoms / "phantoms.csv"), "--images", str(phantoms / "images")]
    output = mounted / "mine"
    assert main(["prepare", "chest-xray", *given, "--output", str(output), "--size", "32", "--workers", "1"]) == 0
    manifest = json.loads((output / "prepared.json").read_text())
    assert manifest["split"]["method"] == "by-patient"  # the lists on the mount are not of this table
    assert not (mounted / "data").exists()
    run = ["--data", str(output), "--output", str(mounted / "my run"), "--model", str(phantoms / "model"), *TRAIN]
    assert main(["train", "chest-xray", *run]) == 0
    assert (mounted / "my run" / "run.json").is_file() and not (mounted / "runs").exists()


def test_the_lists_on_a_mount_are_left_alone_where_another_split_is_asked_for(mounted):
    assert main(["prepare", "chest-xray", "--size", "32", "--workers", "1", "--split", "by-patient"]) == 0
    manifest = json.loads((mounted / "data" / "chest-xray" / "prepared.json").read_text())
    assert manifest["split"]["method"] == "by-patient"


def test_data_of_ones_own_count_before_those_that_are_mounted(mounted):
    assert folders.find_data(nih_paths.FOLDER) == mounted / "mount" / nih_paths.FOLDER
    (mounted / "data" / nih_paths.FOLDER).mkdir(parents=True)
    assert folders.find_data(nih_paths.FOLDER) == mounted / "data" / nih_paths.FOLDER
    assert folders.find_data("nothing of this name") is None


@pytest.mark.parametrize(
    "words, missing, variable",
    [
        (["prepare", "chest-xray"], "--csv", "DATASETS_DIR"),
        (["phantoms", "chest-xray"], "--output", "DATASETS_DIR"),
        (["train", "chest-xray", "--model", "m"], "--output", "CHECKPOINT_DIR"),
        (["train", "chest-xray", "--model", "m", "--output", "r"], "--data", "PUBLIC_DATASETS_DIR"),
        (["train", "language-modeling"], "--output", "CHECKPOINT_DIR"),
        (["train", "seq2seq"], "--output", "CHECKPOINT_DIR"),
        (["evaluate", "chest-xray"], "--run", "CHECKPOINT_DIR"),
        (["search", "seq2seq"], "--output", "CHECKPOINT_DIR"),
    ],
)
def test_without_flag_and_variable_the_message_names_both(words, missing, variable, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"{missing} is missing" in error and variable in error
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_leads_nowhere_is_an_error_with_the_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(folders.PUBLIC_DATASETS_DIR, str(tmp_path / "empty"))
    assert main(["train", "chest-xray", "--model", "m", "--output", str(tmp_path / "run")]) == 1
    assert f"there is no {tmp_path / 'empty' / 'chest-xray'}" in capsys.readouterr().err


def test_results_below_the_read_only_mount_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(folders.PUBLIC_DATASETS_DIR, str(tmp_path))
    monkeypatch.setenv(folders.DATASETS_DIR, str(tmp_path / "mine"))
    assert main(["phantoms", "chest-xray", "--num-images", "20"]) == 1
    assert "which is only read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
