"""What test_timm_models.py runs in a process that has timm: python timm_checks.py PREPARED PHANTOMS FOLDER."""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from image_models import contents, randomise
from safetensors.torch import load_file, save_file

from ipu_trainer import IPUConfig
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.explain.saliency import load_for_saliency, saliency
from ipu_trainer.tasks.chest_xray.model.checkpoint import final_layers, load_finished, load_model
from ipu_trainer.tasks.chest_xray.model.image_processor import write_processor
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, load_normalisation, starting_normalisation
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer, GrayscaleProjection
from ipu_trainer.tasks.chest_xray.train import prepare
from ipu_trainer.tasks.recipe.recipe import seeded_model
from ipu_trainer.training.layers import head_parameters, parameter_depths

PREPARED, PHANTOMS, FOLDER = (Path(word) for word in sys.argv[1:4])
FINDINGS, PREVALENCE = ["Edema", "Mass", "Nodule"], np.array([0.1, 0.2, 0.3])
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
MODELS = {
    "densenet121": {"growth_rate": 4, "block_config": [1, 1, 1, 1]},
    "vit_small_patch16_dinov3": VIT,
    "vit_tiny_patch16_224": VIT,
}


def checkpoint(name, num_classes=2):
    """A folder as timm's own on the Hub: config.json without model_type, weights without a prefix."""
    folder = FOLDER / f"{name}-{num_classes}"
    if not folder.is_dir():
        folder.mkdir()
        model = randomise(timm.create_model(name, num_classes=num_classes, **MODELS[name]))
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, str(folder / "model.safetensors")
        )
        settings = {
            "input_size": [3, 32, 32], "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center",
            "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "num_classes": num_classes,
        }  # fmt: skip
        config = {
            "architecture": name,
            "num_classes": num_classes,
            "model_args": MODELS[name],
            "pretrained_cfg": settings,
        }
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(function, *words):
    try:
        function()
    except UserError as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"not refused: {words}")


def words(folder, run, *more):
    return [
        "--data", str(PREPARED), "--model", str(folder), "--output", str(run), "--max_steps", "1", "--optim", "sgd",
        "--disable_tqdm", "true", "--report_to", "none", "--use_cpu", "true", "--precision", "fp32", "--save_strategy", "no",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "7", "--eval_strategy", "no", "--augment",
        "False", "--weight_decay", "0", *more,
    ]  # fmt: skip


def trained(folder, run, *more):
    job = prepare(words(folder, run, "--drop_path", "0", *more))
    trainer = job.trainer(model=seeded_model(job))
    trainer.train()
    return trainer, job


def every_tensor_of_the_backbone_is_the_checkpoints():
    for name in MODELS:
        for num_classes in (2, 0):
            folder = checkpoint(name, num_classes)
            loaded = load_model(str(folder), FINDINGS, PREVALENCE, 32)
            head = set(head_parameters(loaded.model))
            state = {k: v for k, v in loaded.model.state_dict().items() if v.is_floating_point() and k not in head}
            on_disk = contents(load_file(str(folder / "model.safetensors")))
            assert len(contents(state)) == len(state) and set(contents(state)) <= set(on_disk)
            dropped = {on_disk[key] for key in set(on_disk) - set(contents(state))}
            assert all(one.startswith(("classifier", "head")) for one in dropped), dropped
            for layer in final_layers(loaded.model, 3).values():
                assert np.allclose(torch.sigmoid(layer.bias).detach(), PREVALENCE)
            assert any(("backbone without a head" in note) == (num_classes == 0) for note in loaded.notes), loaded.notes


def a_backbone_that_lacks_a_tensor_is_refused():
    folder = checkpoint("densenet121", 3)
    tensors = load_file(str(folder / "model.safetensors"))
    del tensors["features.denseblock1.denselayer1.conv1.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    refused(lambda: load_model(str(folder), FINDINGS, PREVALENCE), "1 of its", "denselayer1.conv1.weight")


def a_step_and_an_evaluation_are_the_same_on_both_backends():
    for name in ("densenet121", "vit_small_patch16_dinov3"):
        host, job = trained(checkpoint(name), FOLDER / f"{name}-host", "--backend", "host")
        device, _ = trained(checkpoint(name), FOLDER / f"{name}-device", "--backend", "simulated")
        state = device.model.state_dict()
        for key, value in host.model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=key)
        some = job.validation_set
        np.testing.assert_allclose(device.probabilities(some), host.probabilities(some), rtol=0, atol=1e-4)


def four_ipus_take_a_vit_and_refuse_a_densenet():
    config = FOLDER / "four.json"
    config.write_text(json.dumps(IPUConfig(layers_per_ipu=(1, 1, 1, 1)).to_dict()))
    more = ("--backend", "simulated", "--ipu_config", str(config))
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_dinov3"):
        one, _ = trained(checkpoint(name), FOLDER / f"{name}-one", "--backend", "simulated")
        four, _ = trained(checkpoint(name), FOLDER / f"{name}-four", *more)
        state = four.model.state_dict()
        for key, value in one.model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=key)
    refused(
        lambda: trained(checkpoint("densenet121"), FOLDER / "dense", *more), "cannot be split", "layers_per_ipu=[-1]"
    )


def learning_rates_have_timms_depths():
    for name in MODELS:
        model = load_model(str(checkpoint(name)), FINDINGS, PREVALENCE).model
        depths, deepest = parameter_depths(model)
        assert set(depths) == {key for key, _ in model.named_parameters()} and set(depths.values()) == set(
            range(deepest + 1)
        )
        head = head_parameters(model)
        assert head and all(depths[key] == deepest for key in head) and deepest == 5, (name, deepest)
        stem = "features.conv0.weight" if name == "densenet121" else "patch_embed.proj.weight"
        assert depths["timm_model." + stem] == 0


def stochastic_depth_is_timms_own_or_none():
    given = words(checkpoint("densenet121"), FOLDER / "none")
    assert prepare(given).args.drop_path == 0.0
    refused(lambda: prepare([*given, "--drop_path", "0.2"]), "--drop_path 0.2", "cannot be skipped")
    job = prepare(words(checkpoint("vit_tiny_patch16_224"), FOLDER / "own"))
    assert job.args.drop_path == 0.1
    model = seeded_model(job)
    assert model.config.model_args["drop_path_rate"] == 0.1
    assert abs(model.timm_model.blocks[-1].drop_path1.drop_prob - 0.1) < 1e-6


def other_sizes_are_resampled_by_timm():
    pixels = torch.randn(1, 3, 48, 48)
    loaded = load_model(str(checkpoint("vit_tiny_patch16_224")), FINDINGS, PREVALENCE, 48)
    assert "position embeddings resampled from 32 x 32 to 48 x 48 pixels" in loaded.notes
    loaded.model.save_pretrained(FOLDER / "larger")
    again = load_finished(FOLDER / "larger").eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).logits, loaded.model.eval()(pixel_values=pixels).logits)
    assert again.config.pretrained_cfg["input_size"] == [3, 48, 48]
    assert load_model(str(checkpoint("densenet121")), FINDINGS, PREVALENCE, 48).model(
        pixel_values=pixels
    ).logits.shape == (1, 3)
    refused(lambda: load_model(str(checkpoint("vit_tiny_patch16_224")), FINDINGS, PREVALENCE, 44), "44 x 44", "--size")


def a_pipeline_gets_the_pixels_of_training():
    data = load_prepared(PREPARED)
    for name in MODELS:
        normalisation, notes = starting_normalisation(str(checkpoint(name)), 32, "bilinear")
        assert any("without the crop" in note for note in notes)
        prevalence = data.split("train").labels.mean(axis=0)
        model = load_model(str(checkpoint(name)), list(data.findings), prevalence, 32).model.eval()
        run = FOLDER / f"{name}-run"
        model.save_pretrained(run)
        write_processor(run, str(checkpoint(name)), 32, "bilinear", *normalisation.values)
        assert load_normalisation(run, 32, "bilinear") == normalisation
        images = data.split("test")
        with torch.no_grad():
            pixels = ChestXrayCollator(normalisation)([images[0]])["pixel_values"]
            expected = torch.sigmoid(model(pixel_values=pixels).logits)[0].tolist()
        classify = transformers.pipeline("image-classification", model=str(run), device="cpu")
        found = classify(str(PHANTOMS / "images" / images.table["file_name"][0]), top_k=len(data.findings))
        scores = {one["label"]: one["score"] for one in found}
        np.testing.assert_allclose([scores[name] for name in data.findings], expected, rtol=0, atol=1e-5)


def maps_are_integrated_gradients_and_shortcuts_are_none():
    for name in MODELS:
        model = load_model(str(checkpoint(name)), FINDINGS, PREVALENCE, 32).model
        normalisation, _ = starting_normalisation(str(checkpoint(name)), 32, "bilinear")
        assert GrayscaleProjection.of(model, normalisation) is None and ClassTokenLayer.of(model) is None
        model.save_pretrained(FOLDER / f"{name}-maps")
        found = saliency(load_for_saliency(FOLDER / f"{name}-maps", FINDINGS), torch.randn(2, 3, 32, 32), [0, 1])
        assert found.rollout is None and found.method == "integrated gradients" and found.gradient.max() > 0


CHECKS = [
    every_tensor_of_the_backbone_is_the_checkpoints,
    a_backbone_that_lacks_a_tensor_is_refused,
    a_step_and_an_evaluation_are_the_same_on_both_backends,
    four_ipus_take_a_vit_and_refuse_a_densenet,
    learning_rates_have_timms_depths,
    stochastic_depth_is_timms_own_or_none,
    other_sizes_are_resampled_by_timm,
    a_pipeline_gets_the_pixels_of_training,
    maps_are_integrated_gradients_and_shortcuts_are_none,
]

if __name__ == "__main__":
    for check in CHECKS:
        print(check.__name__, flush=True)
        check()
    print(f"{len(CHECKS)} checks passed")
