"""Scripts that people copy from, on tiny settings; and the table in the README."""

import importlib.util
from pathlib import Path

import pytest

from ipu_trainer.compat import transformers_versions as compat

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("flags", "least"),
    [([], 0.9), (["--backend", "simulated", "--max_steps", "8"], 0.0)],
    ids=["learns on the host", "runs on simulated IPUs"],
)
def test_a_task_of_ones_own_needs_no_task_package(tmp_path, flags, least):
    script = load("classify_sentence_pairs")
    use_cpu = ["--" + compat.field_name("use_cpu"), "true"]
    metrics = script.main(["--output_dir", str(tmp_path), "--disable_tqdm", "true", *use_cpu, *flags])
    assert metrics["eval_accuracy"] >= least and "eval_f1" in metrics


def test_the_feature_table_in_the_readme_is_the_generated_one():
    script = load("feature_table")
    readme = (SCRIPTS.parent / "README.md").read_text(encoding="utf-8")
    assert f"{script.BEGIN}\n{script.table()}\n{script.END}" in readme
