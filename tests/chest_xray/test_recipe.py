"""The main job end to end, tiny: train, kill, resume, evaluate elsewhere."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from html_pages import checked_page
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.explain.pointing_game import read_boxes
from ipu_trainer.tasks.chest_xray.recipe_arguments import parse_arguments
from ipu_trainer.tasks.chest_xray.train import prepare
from ipu_trainer.tasks.recipe.recipe import seeded_model, train
from ipu_trainer.tasks.run_record import read_run

CPU = "--" + compat.field_name("use_cpu")
FLAGS = ["--num_train_epochs", "3", "--per_device_train_batch_size", "8", CPU, "True", "--disable_tqdm", "True"]
FLAGS += [
    "--precision",
    "fp32",
    "--num_bootstrap",
    "30",
    "--logging_steps",
    "3",
    "--ema_decay",
    "0.9",
    "--report",
    "False",
]


def words(prepared, phantoms, run, *more):
    return [
        "train",
        "chest-xray",
        "--data",
        str(prepared),
        "--model",
        str(phantoms / "model"),
        "--output",
        str(run),
        *FLAGS,
        *more,
    ]


@pytest.fixture(scope="module")
def run(prepared, phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(prepared, phantoms, folder, "--report", "True")) == 0
    return folder


def test_a_run_leaves_model_metrics_predictions_plots_and_what_was_run(run, prepared):
    metrics = json.loads((run / "metrics.json").read_text())
    rows = metrics["per_finding"]
    defined = [row["auroc"] for row in rows.values() if row["auroc"] is not None]
    assert metrics["mean_auroc_14"] == pytest.approx(np.mean(defined))
    assert set(metrics["subgroups"]) == {"sex", "age", "view"}
    record = read_run(run)
    assert record["data"]["fingerprint"] == load_prepared(prepared).fingerprint
    assert record["backend"]["name"] == "host" and record["precision"]["name"] == "fp32"
    assert record["settings"]["ipu_config"]["replication_factor"] == 1
    assert set(record["versions"]) >= {"torch", "transformers", "ipu_trainer"}
    assert "global batch" in record["batch_table"] and record["execution"]["host_micro_batch_size"] >= 1
    with (run / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == metrics["num_images"]
    assert {"file_name", "patient_id", "truth_Mass", "probability_Mass"} <= set(predictions[0])
    for name in ("auroc", "roc", "calibration", "training"):
        assert (run / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    card = (run / "README.md").read_text()
    assert "Not for clinical use" in card and "synthetic phantoms" in card
    model = ViTForImageClassification.from_pretrained(run)
    assert [model.config.id2label[i] for i in range(len(record["findings"]))] == record["findings"]


def test_a_run_and_an_evaluation_end_in_a_report_with_images_curves_and_localisation(run, prepared, phantoms, tmp_path):
    page = checked_page(run / "report.html")
    text = page.sections["best-and-worst-predictions"]
    assert "gradient-weighted" in text and "rollout" in text and "Without images" not in text
    assert sum(name == "src" for _, name, _ in page.attributes) % 3 == 0
    assert "synthetic phantoms" in page.text and "memory, GiB" in page.sections["training"]
    assert len(json.loads((run / "history.json").read_text())) > 6
    command = ["evaluate", "chest-xray", "--run", str(run), "--data", str(prepared), "--split", "all"]
    assert main([*command, "--output", str(tmp_path / "all"), "--num-bootstrap", "10"]) == 0
    page = checked_page(tmp_path / "all" / "report.html")
    assert "120of" in page.sections["at-a-glance"] and "evaluated in all" in page.text
    assert "was trained on some or all of the evaluated images" in page.text
    assert main(["report", str(tmp_path / "all"), "--boxes", str(phantoms / "boxes.csv")]) == 0
    boxed = read_boxes(phantoms / "boxes.csv")
    text = checked_page(tmp_path / "all" / "report.html").sections["localisation"]
    assert f"{len(boxed)} of the 120 evaluated images have boxes" in text and "image centre" in text
    other = tmp_path / "moved"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(
        json.dumps({**record, "data": {**record["data"], "folder": str(tmp_path / "gone")}})
    )
    assert main(["report", str(other)]) == 0
    assert "--data FOLDER" in checked_page(other / "report.html").sections["best-and-worst-predictions"]
    assert main(["report", str(other), "--data", str(prepared)]) == 0
    assert "Without images" not in checked_page(other / "report.html").text


def test_evaluating_the_run_again_gives_the_same_numbers(run, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the run was on the CPU
    command = ["evaluate", "chest-xray", "--run", str(run), "--data", str(prepared), "--output", str(tmp_path)]
    assert main([*command, "--num-bootstrap", "30"]) == 0
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path))
    assert after["per_finding"] == before["per_finding"]
    assert (tmp_path / "predictions.csv").read_text() == (run / "predictions.csv").read_text()
    assert main([*command[:-1], str(tmp_path / "all"), "--split", "all", "--num-bootstrap", "10"]) == 0
    assert json.loads((tmp_path / "all" / "metrics.json").read_text())["num_images"] == 120


def test_a_run_in_bfloat16_trains_and_is_evaluated_on_whatever_there_is(prepared, phantoms, tmp_path):
    """Without --use_cpu, which Trainer demands for bfloat16 where there is no GPU."""
    folder, settings = tmp_path / "run", ["--max_steps", "2", "--precision", "bf16", CPU, "False"]
    assert main(words(prepared, phantoms, folder, *settings)) == 0
    assert json.loads((folder / "run.json").read_text())["precision"]["name"] == "bf16"
    command = ["evaluate", "chest-xray", "--run", str(folder), "--data", str(prepared)]
    assert main([*command, "--output", str(tmp_path / "again"), "--num-bootstrap", "10"]) == 0


def test_findings_are_matched_by_name_with_data_that_has_others(run, phantoms, tmp_path):
    with (phantoms / "phantoms.csv").open() as file:
        table = list(csv.reader(file))
    kept = [row for row in table[1:] if "Mass" not in row[1]][:30]
    kept[0][1] = "Foreign_Body"
    with (tmp_path / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerows([table[0], *kept])
    images = tmp_path / "images"
    images.mkdir()
    for row in kept:
        (images / row[0]).write_bytes((phantoms / "images" / row[0]).read_bytes())
    prepare = ["prepare", "chest-xray", "--csv", str(tmp_path / "other.csv"), "--images", str(images), "--size", "32"]
    assert main([*prepare, "--output", str(tmp_path / "data"), "--findings", "any", "--workers", "1"]) == 0
    command = ["evaluate", "chest-xray", "--run", str(run), "--data", str(tmp_path / "data"), "--split", "all"]
    assert main([*command, "--output", str(tmp_path / "out"), "--num-bootstrap", "10"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["findings_unknown_to_the_model"] == ["Foreign_Body"]
    assert "Mass" in metrics["undefined_findings"]
    assert metrics["per_finding"]["Mass"]["num_positive"] == 0


def test_a_killed_run_resumes_to_bit_identical_weights(run, prepared, phantoms, tmp_path):
    folder = tmp_path / "killed"
    program = "import sys; from ipu_trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        "import torch; torch.set_num_threads(1); " + program,
        *words(prepared, phantoms, folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # The first checkpoint is complete once its last file is there; kill in the middle of what follows.
    while not list(folder.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    assert main(words(prepared, phantoms, folder)) == 0
    whole, resumed = load_file(run / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (
        json.loads((folder / "metrics.json").read_text())["mean_auroc_14"]
        == json.loads((run / "metrics.json").read_text())["mean_auroc_14"]
    )


def test_a_run_that_was_moved_goes_on_from_its_last_whole_checkpoint(
    run, prepared, phantoms, tmp_path, capsys, monkeypatch
):
    shutil.copytree(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    folder = Path("moved")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    before, newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    content = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    trained = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    assert main(words(prepared, phantoms, folder, "--report", "True", "--num_bootstrap", "2")) == 0
    out = capsys.readouterr().out
    assert f"passed over: {newest.name}: optimizer.pt is not what was written" in out
    assert f"resuming from {before}, at step {before.name[11:]}" in out
    assert (folder / "model.safetensors").read_bytes() == trained
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_finished_folder_and_an_interrupted_run_of_other_settings_are_refused(
    run, prepared, phantoms, tmp_path, capsys
):
    assert main(words(prepared, phantoms, run)) == 1
    assert "finished run" in capsys.readouterr().err
    record = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert main(words(prepared, phantoms, tmp_path, "--learning_rate", "1")) == 1
    assert "other settings (learning_rate" in capsys.readouterr().err


def test_an_ipu_profile_gives_the_batch_and_equal_global_batches_equal_weights(prepared, phantoms, tmp_path):
    config = tmp_path / "ipu_config.json"
    config.write_text(json.dumps({"gradient_accumulation_steps": 2, "replication_factor": 2}))
    # No ranking loss: its pairs are those of a micro-batch, so it is not the same with another one.
    more = [
        "--num_train_epochs",
        "1",
        "--ranking_weight",
        "0",
        "--drop_path",
        "0",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.5",
    ]
    assert main(words(prepared, phantoms, tmp_path / "whole", *more)) == 0
    spread = [*more, "--ipu-config", str(config), "--per_device_train_batch_size", "2"]
    assert main(words(prepared, phantoms, tmp_path / "spread", *spread)) == 0
    whole, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "spread"))
    # The same samples in another order of summation: float32 rounding over one epoch.
    assert max(float((whole[name] - other[name]).abs().max()) for name in whole) < 1e-5
    _, args = parse_arguments(
        ["--data", str(prepared), "--model", "m", "--output", str(tmp_path / "x"), "--ipu_config", "vit_base_pod4"]
    )
    assert args.per_device_train_batch_size == 1


@pytest.mark.parametrize(
    "more, message",
    [
        (
            ["--ipu_config", "vit_base_pod4", "--per_device_train_batch_size", "4"],
            "fewer than the 512 of one host step",
        ),
        (["--per_device_train_batch_size", "1", "--ranking_weight", "0.5"], "compares samples of a micro-batch"),
        (["--loss", "hinge"], "not one of bce, asymmetric"),
        (["--rotation_degrees", "400"], "rotation_degrees 400"),
        (["--ipu_config", "vit_bas_pod4"], "vit_base_pod4"),
        (["--precision", "fp8"], "not one of auto"),
        (["--precision", "fp32", "--bf16", "True"], "contradict each other"),
        (["--no_such_flag", "1"], "unknown flags --no_such_flag"),
        (["--layer_decay", "2"], "layer_decay 2"),
    ],
)
def test_what_cannot_work_is_refused_before_training(prepared, phantoms, tmp_path, capsys, more, message):
    assert main(words(prepared, phantoms, tmp_path / "run", *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_missing_data_or_output_is_named_with_the_next_move(phantoms, tmp_path, capsys):
    assert main(["train", "chest-xray", "--data", str(tmp_path), "--model", "m", "--output", str(tmp_path / "r")]) == 1
    assert "ipu-trainer prepare chest-xray" in capsys.readouterr().err
    assert main(["train", "chest-xray", "--data", "d", "--model", "m"]) == 1
    error = capsys.readouterr().err
    assert "--output is missing" in error and "CHECKPOINT_DIR" in error
    assert main(["evaluate", "chest-xray", "--run", str(tmp_path), "--data", "d", "--output", "o"]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_options_of_the_loss_and_the_sampler_reach_training(prepared, phantoms, tmp_path):
    run = tmp_path / "run"
    more = [
        "--pos_weight",
        "True",
        "--ranking_weight",
        "0",
        "--balance",
        "0.5",
        "--tail",
        "pad",
        "--horizontal_flip",
        "True",
    ]
    flags = words(prepared, phantoms, run, *more, "--num_train_epochs", "1")[2:]
    assert np.isfinite(train(prepare(flags))["validation_mean_auroc_14"])
    settings = read_run(run)["settings"]
    assert len(settings["loss"]["pos_weight"]) == len(read_run(run)["findings"])
    assert settings["augmentation"]["horizontal_flip"] is True
    assert "samples padded" in read_run(run)["batch_table"]


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_balance_decides_what_training_draws(prepared, phantoms, tmp_path, balance):
    """With it an epoch draws some images several times and leaves others out; without it each comes once."""
    flags = words(prepared, phantoms, tmp_path, "--balance", str(balance), "--per_device_train_batch_size", "4")[2:]
    job = prepare([*flags, "--gradient_accumulation_steps", "1", "--ema_decay", "0"])
    trainer = job.trainer(model=seeded_model(job))
    seen = []
    stock = trainer.data_collator
    trainer.data_collator = lambda samples: (seen.extend(_indices(samples)), stock(samples))[1]
    assert list(trainer.get_train_dataloader())
    assert len(seen) == len(trainer.train_dataset) // 4 * 4 and (len(set(seen)) < len(seen)) == bool(balance)


def _indices(samples):
    return [int(index) for index in samples["index"]]


def test_the_recipe_on_a_simulated_pod_gives_the_weights_of_the_host(prepared, phantoms, tmp_path, capsys):
    """The profile vit_base_pod4 with its twelve layers on four IPUs, tiny; accumulation for these few phantoms."""
    model = tmp_path / "model"
    shutil.copytree(phantoms / "model", model)
    torch.manual_seed(0)
    config = ViTConfig.from_pretrained(model, num_hidden_layers=12)
    ViTForImageClassification(config).save_pretrained(model)
    more = ["--model", str(model), "--num_train_epochs", "2", "--per_device_train_batch_size", "2", "--drop_path", "0"]
    more += ["--ipu-config", "vit_base_pod4", "--ipu_config_overrides", "gradient_accumulation_steps=16"]
    # SGD: where a gradient is zero but for rounding (a key's bias), Adam would make a step of that rounding.
    more += ["--ema_decay", "0", "--optim", "sgd", "--learning_rate", "0.5"]
    for backend in ("host", "simulated"):
        assert main(words(prepared, phantoms, tmp_path / backend, *more, "--backend", backend)) == 0
    assert "simulated IPUs on cpu" in capsys.readouterr().out
    host, device = (load_file(tmp_path / name / "model.safetensors") for name in ("host", "simulated"))
    assert max(float((host[name] - device[name]).abs().max()) for name in host) < 1e-5
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text())["mean_auroc_14"] for n in ("host", "simulated")]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    assert read_run(tmp_path / "simulated")["backend"]["name"] == "simulated"


@pytest.mark.parametrize("backend", ["host", "simulated"])
def test_two_processes_train_the_recipe_to_the_weights_of_one(prepared, phantoms, tmp_path, backend):
    config = tmp_path / "ipu_config.json"
    config.write_text(json.dumps({"replication_factor": 2}))
    more = [
        "--num_train_epochs",
        "1",
        "--per_device_train_batch_size",
        "4",
        "--ranking_weight",
        "0",
        "--drop_path",
        "0",
    ]
    more += ["--optim", "sgd", "--learning_rate", "0.5", "--ema_decay", "0", "--ipu_config", str(config)]
    more += ["--backend", backend]
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*launcher, "-m", "ipu_trainer.cli", *words(prepared, phantoms, tmp_path / str(processes), *more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["mean_auroc_14"] for name in ("1", "2")]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.02)
