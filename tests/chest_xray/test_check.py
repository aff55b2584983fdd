"""`ipu-trainer check`: whole folders pass, and each kind of damage is named with its file, and nothing is changed."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from made_up_runs import FINDINGS, predictions, write_run
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from ipu_trainer.atomic import write_json
from ipu_trainer.cli import main
from ipu_trainer.tasks.checking import weight_checks
from ipu_trainer.tasks.chest_xray.data.integrity.digests import with_digest
from ipu_trainer.training.state.checkpoints import write_digests


def write_checkpoint(folder, model, step):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    model.save_pretrained(folder, safe_serialization=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}  # noqa: NPY002, as Trainer saves it
    torch.save(states, folder / "rng_state.pth")
    write_json(folder / "trainer_state.json", {"global_step": step, "log_history": [{"loss": 1.0, "step": step}]})


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """prepared/, a finished run with a checkpoint in run/, and a model in model/."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(prepared, folder / "prepared")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=len(FINDINGS),
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    run = write_run(folder / "run", *predictions(12))
    model.save_pretrained(run, safe_serialization=True)
    write_json(run / "preprocessor_config.json", {"size": 32})
    (run / "plots").mkdir()
    Image.new("L", (8, 8)).save(run / "plots" / "roc.png")
    (run / "report.html").write_text("<html></html>\n")
    write_checkpoint(run / "checkpoint-2", model, 2)
    model.save_pretrained(folder / "model", safe_serialization=True)
    return folder


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["prepared", "run", "run/checkpoint-2", "model"])
def test_what_is_whole_passes_and_is_not_changed(whole, name, capsys):
    before = state(whole)
    assert main(["check", str(whole / name)]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\nwhole.\n") and "damaged" not in printed.out and not printed.err
    assert state(whole) == before


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def change(**values):
    return lambda path: write_json(path, {**json.loads(path.read_text()), **values})


def prepared_with(**values):
    """prepared.json as `prepare` would write it with these values."""
    return lambda path: write_json(path, with_digest({**json.loads(path.read_text()), **values}))


def replaced(**tensors):
    """Weights with these tensors in place of theirs; None leaves one out. Double underscores are dots."""

    def damage(path):
        from safetensors.torch import load_file, save_file

        weights = {**load_file(path), **{name.replace("__", "."): value for name, value in tensors.items()}}
        save_file({name: value for name, value in weights.items() if value is not None}, path, {"format": "pt"})

    return damage


def infinite(path):
    loaded = torch.load(path, weights_only=True)
    loaded["state"][0]["exp_avg"][0] = float("inf")
    torch.save(loaded, path)


def remove(path):
    path.unlink()


DAMAGES = [
    ("prepared", "pixels.u8", cut, r"pixels.u8 +damaged .*truncated"),
    ("prepared", "pixels.u8", remove, r"pixels.u8 +missing"),
    ("prepared", "prepared.json", cut, r"prepared.json +damaged .*is not JSON"),
    ("prepared", "prepared.json", prepared_with(counts=None), r"prepared.json +damaged  .*counts is null"),
    ("prepared", "prepared.json", change(seed=1), r"prepared.json +damaged .*is not what `prepare` wrote"),
    ("prepared", "prepared.json", prepared_with(fingerprint="x"), r"pixels.u8 +damaged .*another preparation"),
    ("prepared", "prepared.json", prepared_with(num_images=7), r"metadata/ +damaged"),
    ("prepared", "metadata/state.json", cut, r"metadata/ +damaged"),
    ("prepared", "metadata.jsonl", cut, r"metadata.jsonl +damaged  line \d+"),
    ("prepared", "rejected.csv", remove, r"rejected.csv +missing"),
    ("run", "run.json", lambda path: path.write_text("null"), r"run.json +damaged  .*null, not an object"),
    ("run", "run.json", change(status="running"), r"Give the same train command again: it goes on from checkpoint-2"),
    ("run", "run.json", change(thresholds=3), r"run.json +damaged  thresholds is 3, not an object"),
    ("run", "metrics.json", remove, r"metrics.json +missing"),
    ("run", "predictions.csv", cut, r"predictions.csv +damaged"),
    ("run", "history.json", lambda path: path.write_text("{}"), r"history.json +damaged"),
    ("run", "plots/roc.png", flip, r"plots/ +damaged  roc.png"),
    ("run", "report.html", cut, r"ipu-trainer report "),
    ("run", "config.json", change(num_hidden_layers=3), r"config.json +damaged  16 tensors of its ViT"),
    ("run", "config.json", change(hidden_size="x"), r"config.json +damaged  it describes no model"),
    ("run", "model.safetensors", cut, r"model.safetensors +damaged"),
    ("run", "model.safetensors", replaced(classifier__bias=torch.tensor([float("nan")] * 5)), r"classifier.bias holds values"),
    ("run", "model.safetensors", replaced(classifier__bias=torch.zeros(4)), r"config.json +damaged .* shape"),
    ("run", "model.safetensors", replaced(classifier__bias=None), r"config.json +damaged .* classifier.bias"),
    ("run", "checkpoint-2/optimizer.pt", flip, r"checkpoint-2/ +damaged  optimizer.pt.*may be removed"),
    ("run/checkpoint-2", "optimizer.pt", infinite, r"optimizer.pt +damaged  state.0.exp_avg holds values that are not finite"),
    ("run/checkpoint-2", "rng_state.pth", cut, r"rng_state.pth +damaged  it is no whole archive"),
    ("run/checkpoint-2", "scheduler.pt", remove, r"scheduler.pt +missing"),
    ("run/checkpoint-2", "trainer_state.json", change(global_step=4), r"global_step is 4 in checkpoint-2"),
    ("model", "model.safetensors", lambda path: path.write_text("version https://git-lfs"), r"model.safetensors +damaged.*git lfs"),
    ("model", "config.json", remove, r"config.json +missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "damage", "expected"), DAMAGES)
def test_a_damaged_file_is_named_with_what_is_wrong_and_what_to_do(
    whole, tmp_path, name, file, damage, expected, capsys
):
    import re

    shutil.copytree(whole / name, tmp_path / name)
    damage(tmp_path / name / file)
    assert main(["check", str(tmp_path / name)]) == 1
    out = capsys.readouterr().out
    assert re.search(expected, out, re.DOTALL), out
    assert not out.endswith("\nwhole.\n")


def test_digests_of_a_checkpoint_find_one_flipped_bit(whole, tmp_path, capsys):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(whole / "run" / "checkpoint-2", folder)
    write_digests(folder)
    assert main(["check", str(folder)]) == 0
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1  # a mantissa: the value stays finite
    (folder / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    assert main(["check", str(folder)]) == 1
    assert "model.safetensors is not what was written" in capsys.readouterr().out


def test_digests_of_prepared_data_find_one_flipped_bit(whole, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(whole / "prepared", folder)
    assert main(["check", str(folder)]) == 0
    assert "digests" in capsys.readouterr().out
    for name, expected in (("pixels.u8", "its pixels are not those"), ("metadata.jsonl", "metadata.jsonl is not what")):
        content = (folder / name).read_bytes()
        place = len(content) - 1 if name == "pixels.u8" else content.index(b'"patient_id": "') + 15
        (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert main(["check", str(folder)]) == 1
        assert expected in capsys.readouterr().out
        (folder / name).write_bytes(content)


def test_a_folder_of_no_known_kind_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path, expected in (
        (tmp_path, "no prepared folder"),
        (tmp_path / "no", "does not exist"),
        (tmp_path / "file", "is a file"),
    ):
        assert main(["check", str(path)]) == 1
        assert expected in capsys.readouterr().err
    (tmp_path / "pixels.u8.plan").write_text("plan")
    assert main(["check", str(tmp_path)]) == 1
    assert "Give the same prepare command again: it goes on" in capsys.readouterr().out


def test_weights_are_read_in_parts(whole, tmp_path, monkeypatch):
    largest = []
    real = torch.isfinite
    monkeypatch.setattr(weight_checks, "_ELEMENTS_AT_ONCE", 64)
    monkeypatch.setattr(torch, "isfinite", lambda part: largest.append(part.numel()) or real(part))
    _, problem = weight_checks._tensors(whole / "model" / "model.safetensors")
    assert problem == "" and max(largest) <= 272 < sum(largest) / 10  # a row of the position embeddings
