"""Which models the task takes: image classifiers with their weights, reading three channels or one (test_image_architectures.py: each)."""

import json

import numpy as np
import pytest
import torch
from html_pages import checked_page
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_finished, load_model
from ipu_trainer.tasks.chest_xray.model.inputs import load_normalisation

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
FINDINGS = ["Edema", "Mass", "Nodule"]
PREVALENCE = np.array([0.1, 0.2, 0.3])


def write_model(folder, phantoms, model, **processor):
    """The phantoms' preprocessor beside another model; processor: what differs in it."""
    folder.mkdir()
    values = json.loads((phantoms / "model" / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **processor}))
    model.save_pretrained(folder)
    return folder


def train_words(prepared, model, run, *more):
    return [
        "train", "chest-xray", "--data", str(prepared), "--model", str(model), "--output", str(run), "--max_steps", "2",
        "--num_bootstrap", "5", "--disable_tqdm", "true", "--report_to", "none", f"--{compat.field_name('use_cpu')}", "true",
        *more,
    ]  # fmt: skip


def of_text():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return BertForSequenceClassification(BertConfig(vocab_size=8, **{name: SMALL[name] for name in names}))


def of_images_and_text():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    small = {name: SMALL[name] for name in names}
    return CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 8}, vision_config={**small, "image_size": 32}))


def without_classifier():
    return ViTMAEForPreTraining(
        ViTMAEConfig(image_size=32, decoder_hidden_size=16, decoder_num_hidden_layers=1, **SMALL)
    )


def of_patches_that_do_not_divide():
    return ViTForImageClassification(ViTConfig(image_size=48, **{**SMALL, "patch_size": 12}))


def of_four_channels():
    return ViTForImageClassification(ViTConfig(image_size=32, num_channels=4, **SMALL))


@pytest.mark.parametrize(
    "make, words",
    [
        (of_text, ["model_type bert", "BertForSequenceClassification", "Give --model"]),
        (of_images_and_text, ["model_type clip", "CLIPModel", "Give --model"]),
        (without_classifier, ["model_type vit_mae", "ViTMAEForPreTraining", "Give --model"]),
        (of_patches_that_do_not_divide, ["48 x 48", "no multiple of its patches of 12", "--size 48"]),
        (of_four_channels, ["num_channels is 4", "Give --model"]),
    ],
)
def test_what_the_data_path_cannot_feed_is_refused_before_a_run_is_written(
    prepared, phantoms, tmp_path, make, words, capsys
):
    model = write_model(tmp_path / "model", phantoms, make())
    assert main(train_words(prepared, model, tmp_path / "run")) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in [str(model), *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "search"])
def test_a_vit_that_lacks_tensors_is_refused_before_a_run_or_a_trial(prepared, phantoms, tmp_path, command, capsys):
    if command == "search":
        pytest.importorskip("optuna")
    model = write_model(tmp_path / "model", phantoms, ViTForImageClassification(ViTConfig(image_size=32, **SMALL)))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert main([command, *train_words(prepared, model, tmp_path / "run")[1:]]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model_type vit" in line and "16 of its" in line and str(model) in line
    assert not (tmp_path / "run").exists()


def test_the_body_of_a_vit_gets_a_new_head_at_the_prevalence(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=32, **SMALL)).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), FINDINGS, PREVALENCE).model
    assert np.allclose(torch.sigmoid(model.classifier.bias).detach(), PREVALENCE)


def test_a_head_is_kept_for_the_same_findings_alone(tmp_path):
    names = dict(enumerate(FINDINGS))
    before = ViTForImageClassification(ViTConfig(image_size=32, num_labels=3, id2label=names, **SMALL))
    before.save_pretrained(tmp_path)
    same = load_model(str(tmp_path), FINDINGS, PREVALENCE).model
    assert torch.equal(same.classifier.weight, before.classifier.weight)
    other = load_model(str(tmp_path), ["Edema", "Hernia", "Mass"], PREVALENCE).model  # as many, but others
    assert not torch.equal(other.classifier.weight, before.classifier.weight)
    assert np.allclose(torch.sigmoid(other.classifier.bias).detach(), PREVALENCE)


def test_a_finished_model_without_its_head_is_refused(tmp_path):
    ViTModel(ViTConfig(image_size=32, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2 of its .* tensors are not there, such as classifier.bias"):
        load_finished(tmp_path)


@pytest.mark.parametrize("mean, std", [([0.5] * 3, [0.25] * 3), ([0.5], [0.25]), (0.5, 0.25)])
def test_a_model_of_one_channel_reads_the_gray_values_themselves(phantoms, tmp_path, mean, std):
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(image_size=32, num_channels=1, **SMALL))
    model = write_model(tmp_path / "model", phantoms, vit, image_mean=mean, image_std=std)
    normalisation = load_normalisation(model, 32, "bilinear")
    gray = torch.rand(2, 32, 32)
    assert torch.equal(normalisation(gray), ((gray - 0.5) / 0.25)[:, None])


def test_means_for_another_number_of_channels_are_refused(phantoms, tmp_path):
    vit = ViTForImageClassification(ViTConfig(image_size=32, num_channels=1, **SMALL))
    model = write_model(tmp_path / "one", phantoms, vit, image_mean=[0.4, 0.5, 0.6])
    with pytest.raises(ValueError, match="reads 1 channel .num_channels"):
        load_normalisation(model, 32, "bilinear")


def test_a_run_of_one_channel_is_trained_evaluated_and_reported_with_maps(prepared, phantoms, tmp_path):
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(image_size=32, num_channels=1, **SMALL))
    model = write_model(tmp_path / "model", phantoms, vit)
    assert main(train_words(prepared, model, tmp_path / "run")) == 0
    assert "gradient-weighted" in checked_page(tmp_path / "run" / "report.html").text
    assert load_finished(tmp_path / "run").config.num_channels == 1
    words = ["evaluate", "chest-xray", "--run", str(tmp_path / "run"), "--data", str(prepared), "--num-bootstrap", "5"]
    assert main([*words, "--output", str(tmp_path / "again")]) == 0
    first, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "again"))
    assert again["mean_auroc_14"] == first["mean_auroc_14"]
