"""Scripts for Pods and notebook machines: they parse, their flags exist, and what they start is what they say.

No poprun, Slurm, Kubernetes or IPU is here: poprun and ipu-trainer are stood in for by a program that writes down its words.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ipu_trainer.config.profiles import load_profile
from ipu_trainer.tasks.chest_xray.recipe_arguments import ChestXrayArguments
from ipu_trainer.tasks.recipe.flags import parse_flags
from ipu_trainer.training.arguments import IPUTrainingArguments

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "scripts"
SHELL = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])


def flags_of(words):
    """Values by field name of `ipu-trainer train chest-xray` and these words. Raises ValueError for an unknown flag."""
    assert words[:3] == ["ipu-trainer", "train", "chest-xray"], words
    values = parse_flags("chest-xray", ChestXrayArguments, words[3:], {})[1]
    assert set(values) <= set(IPUTrainingArguments.__dataclass_fields__)
    return values


@pytest.fixture
def recorded(tmp_path):
    """(environment, the words that poprun was started with); `ipu-trainer` is there too, and does nothing."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in (
        ("poprun", f'printf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "words"))}'),
        ("ipu-trainer", ":"),
    ):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "IPUS": "16", "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
    }  # fmt: skip
    return environment, lambda: (tmp_path / "words").read_text().splitlines()


RUN = ["--data", "prepared", "--model", "vit", "--output", "run", "--ipu-config", "vit_base_pod16"]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_parse_and_stop_at_errors(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")


def test_poprun_gets_the_replicas_of_the_config_and_flags_that_exist(recorded):
    environment, words = recorded
    environment.update(INSTANCES="2", PARTITION="p16", POPLAR_EXECUTABLE_CACHE_DIR="/cache")
    subprocess.run(["bash", str(SCRIPTS / "poprun_chest_xray.sh"), *RUN], env=environment, check=True)
    told = words()
    start = told.index("ipu-trainer")
    settings = dict(zip(told[:start:2], told[1:start:2]))
    config = load_profile("vit_base_pod16").config
    assert settings == {
        "--num-instances": "2", "--num-replicas": str(config.replication_factor), "--ipus-per-replica": "4",
        "--executable-cache-path": "/cache", "--vipu-partition": "p16",
    }  # fmt: skip
    values = flags_of(told[start:])
    assert values["backend"] == "sdk" and values["ipu_config"] == "vit_base_pod16" and values["output_dir"] == "run"
    assert config.updated_from_string(values["ipu_config_overrides"]) == config


def test_replicas_that_processes_cannot_share_are_refused(recorded):
    environment, _ = recorded
    environment.update(INSTANCES="3")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "poprun_chest_xray.sh"), *RUN], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1 and "4 replicas of 4 IPUs cannot be shared out over 3 processes" in done.stderr


@pytest.mark.parametrize(
    ("more", "partition"),
    [({}, "slurm_7"), ({"IPUOF_VIPU_API_PARTITION_ID": "site"}, "site"), ({"PARTITION": "mine"}, "mine")],
)
def test_slurm_hands_its_partition_and_a_lasting_cache_to_poprun(recorded, more, partition):
    environment, words = recorded
    subprocess.run(["bash", str(SCRIPTS / "slurm_chest_xray.sbatch"), *RUN], env={**environment, **more}, check=True)
    told = words()
    assert told[told.index("--vipu-partition") + 1] == partition
    cache = Path(told[told.index("--executable-cache-path") + 1])
    assert cache.is_dir() and Path(environment["HOME"]) in cache.parents
    flags_of(told[told.index("ipu-trainer") :])


def test_slurm_needs_the_number_of_ipus(recorded):
    environment, _ = recorded
    del environment["IPUS"]
    done = subprocess.run(
        ["bash", str(SCRIPTS / "slurm_chest_xray.sbatch"), *RUN], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode and "IPUS=16" in done.stderr


def test_the_ipujob_asks_for_the_ipus_of_its_config_and_mounts_what_it_names(monkeypatch):
    job = yaml.safe_load((SCRIPTS / "ipujob_chest_xray.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("graphcore.ai/v1alpha1", "IPUJob")
    spec = job["spec"]
    assert set(spec) == {"jobInstances", "ipusPerJobInstance", "workers"}
    pod = spec["workers"]["template"]["spec"]
    (container,) = pod["containers"]
    for name in ("PUBLIC_DATASETS_DIR", "DATASETS_DIR", "CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
    environment = {item["name"]: item["value"] for item in container["env"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines = [line for line in container["args"][0].splitlines() if "train" in line.split()]
    values = flags_of(shlex.split(lines[0]))
    assert spec["ipusPerJobInstance"] == str(load_profile(values["ipu_config"]).config.num_ipus)
    assert values["output_dir"] == "/results/chest-xray" and values["backend"] == "sdk"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert (
        mounts[environment["PUBLIC_DATASETS_DIR"]]["readOnly"]
        and "readOnly" not in mounts[environment["CHECKPOINT_DIR"]]
    )
    assert environment["POPLAR_EXECUTABLE_CACHE_DIR"].startswith("/results/")  # outlives the job
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_gradient_mounts_the_data_set_where_prepare_looks_for_it():
    from ipu_trainer.tasks.chest_xray.commands import FOLDER

    settings = yaml.safe_load((REPOSITORY / ".gradient" / "settings.yaml").read_text(encoding="utf-8"))
    assert set(settings["integrations"]) == {FOLDER}
    assert settings["integrations"][FOLDER]["type"] == "dataset"
    for path in (REPOSITORY / ".gradient" / "settings.yaml", SCRIPTS / "setup_notebook.sh"):
        assert "IPU" not in path.read_text(encoding="utf-8").replace("IPU_TRAINER", "")  # Gradient has none


def test_the_setup_script_makes_folders_and_runs_a_command_with_them(tmp_path):
    environment = {
        **os.environ, "HOME": str(tmp_path), "PYTHON": sys.executable, "PIP": "echo pip", "CHECKPOINT_DIR": str(tmp_path / "mine"),
    }  # fmt: skip
    for name in ("PUBLIC_DATASETS_DIR", "DATASETS_DIR"):
        environment.pop(name, None)
    script = ["bash", str(SCRIPTS / "setup_notebook.sh")]
    show = ["bash", "-c", "echo $PUBLIC_DATASETS_DIR $DATASETS_DIR $CHECKPOINT_DIR"]
    done = subprocess.run([*script, *show], env=environment, capture_output=True, text=True, check=True)
    public, data, checkpoints = done.stdout.split()
    assert public == "/datasets" and checkpoints == str(tmp_path / "mine")
    assert Path(data).is_dir() and Path(checkpoints).is_dir()
    assert "--editable .[fast,search,notebooks]" in done.stderr  # the image's torch is left as it is
    shown = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"export CHECKPOINT_DIR={tmp_path / 'mine'}" in shown
    environment["PYTHON"] = "no-such-python"
    failed = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and "Choose an image" in failed.stderr
