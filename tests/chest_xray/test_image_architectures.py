"""Every architecture of docs/models.md: its weights, its training on both backends, its layers, its shortcuts, its maps."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from html_pages import checked_page
from image_models import CHECKPOINTS, HERE, contents, file_contents, read_weights, write_checkpoint
from safetensors.torch import load_file, save_file

from ipu_trainer import IPUConfig
from ipu_trainer.cli import main
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.explain.saliency import _read_by_head, load_for_saliency, saliency
from ipu_trainer.tasks.chest_xray.model.architectures import read_config, skips_layers_by
from ipu_trainer.tasks.chest_xray.model.checkpoint import final_layers, load_finished, load_model
from ipu_trainer.tasks.chest_xray.model.image_processor import write_processor
from ipu_trainer.tasks.chest_xray.model.inputs import (
    ChestXrayCollator,
    Normalisation,
    load_normalisation,
    starting_normalisation,
)
from ipu_trainer.tasks.chest_xray.model.shortcuts import ClassTokenLayer, GrayscaleProjection
from ipu_trainer.tasks.chest_xray.train import prepare
from ipu_trainer.tasks.recipe.recipe import seeded_model
from ipu_trainer.training.finetuning.stochastic_depth import add_drop_path
from ipu_trainer.training.layers import head_parameters, parameter_depths

FINDINGS = ["Edema", "Mass", "Nodule"]
PREVALENCE = np.array([0.1, 0.2, 0.3])
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("name", HERE)
POD = transformers.__version__.startswith("4.29")
CPU = "--" + compat.field_name("use_cpu")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """folder(name): a checkpoint of the architecture with a head of two outputs, written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name):
        if not (root / name).is_dir():
            write_checkpoint(root / name, name)
        return root / name

    return folder


def base_of(model):
    return getattr(model, model.base_model_prefix)


def hidden(base, pixels):
    with torch.no_grad():
        return base.eval()(pixels)[0]


@every
@pytest.mark.parametrize("suffix", ["ForImageClassification", "Model"])
def test_every_tensor_of_the_backbone_is_the_checkpoints(tmp_path, name, suffix):
    folder, before = write_checkpoint(tmp_path, name, suffix)
    loaded = load_model(str(folder), FINDINGS, PREVALENCE, 32)
    base = base_of(loaded.model)
    on_disk = file_contents(folder)
    state = {key: value for key, value in base.state_dict().items() if value.is_floating_point()}
    own = contents(state)
    assert len(own) == len(state) and set(own) <= set(on_disk)
    # Nothing of the backbone on disk was dropped but what a classifier has no use for.
    dropped = {on_disk[key] for key in set(on_disk) - set(own)}
    assert all(any(part in one for part in ("classifier", "pooler", "mask_token")) for one in dropped), dropped
    source = before if suffix == "Model" else base_of(before)
    torch.testing.assert_close(hidden(base, PIXELS), hidden(source, PIXELS), rtol=0, atol=0)
    kind = "a backbone without a head" if suffix == "Model" else "its head has other outputs"
    assert any(kind in note and "prevalence of 3 findings" in note for note in loaded.notes)
    for layer in final_layers(loaded.model, 3).values():
        assert np.allclose(torch.sigmoid(layer.bias).detach(), PREVALENCE)


def words(prepared, model, run, *more):
    return [
        "--data", str(prepared), "--model", str(model), "--output", str(run), "--max_steps", "1", "--optim", "sgd",
        "--num_bootstrap", "5", "--disable_tqdm", "true", "--report_to", "none", CPU, "true", "--precision", "fp32",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "7", "--drop_path", "0", "--save_strategy",
        "no", "--eval_strategy", "no", "--augment", "False", "--weight_decay", "0", *more,
    ]  # fmt: skip


def trained(prepared, model, run, *more):
    job = prepare(words(prepared, model, run, *more))
    trainer = job.trainer(model=seeded_model(job))
    trainer.train()
    return trainer, job


@every
def test_a_step_and_an_evaluation_are_the_same_on_the_host_and_on_a_simulated_device(
    prepared, checkpoints, tmp_path, name
):
    host, job = trained(prepared, checkpoints(name), tmp_path / "host", "--backend", "host")
    device, _ = trained(prepared, checkpoints(name), tmp_path / "device", "--backend", "simulated")
    before = load_model(
        str(checkpoints(name)), job.data.findings, job.train_set.labels.mean(axis=0), 32
    ).model.state_dict()
    after, state = host.model.state_dict(), device.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    for key, value in after.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=key)
    some = job.validation_set
    np.testing.assert_allclose(device.probabilities(some), host.probabilities(some), rtol=0, atol=1e-4)


@every
def test_four_simulated_ipus_train_as_one(prepared, checkpoints, tmp_path, name):
    one, _ = trained(prepared, checkpoints(name), tmp_path / "one", "--backend", "simulated")
    config = tmp_path / "four.json"
    config.write_text(json.dumps(IPUConfig(layers_per_ipu=(1, 1, 1, 1)).to_dict()))
    four, _ = trained(
        prepared, checkpoints(name), tmp_path / "four", "--backend", "simulated", "--ipu_config", str(config)
    )
    state = four.model.state_dict()
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=key)


@every
def test_learning_rates_fall_from_the_head_to_the_stem(checkpoints, name):
    model = load_model(str(checkpoints(name)), FINDINGS, PREVALENCE, 32).model
    depths, deepest = parameter_depths(model)
    assert set(depths) == {key for key, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(deepest + 1))
    head = head_parameters(model)
    assert head and all(depths[key] == deepest for key in head)
    # What comes later in the forward pass is deeper: gradients reach the weights in the order opposite to their use.
    order = []
    for key, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, key=key: order.append(key))
    model(pixel_values=PIXELS).logits.sum().backward()
    used = [depths[key] for key in reversed(order)]
    firsts = {depth: used.index(depth) for depth in set(used)}
    assert [firsts[depth] for depth in sorted(firsts)] == sorted(firsts.values())


@every
def test_gray_values_give_the_same_logits_and_gradients_where_the_shortcut_applies(checkpoints, name):
    model = load_model(str(checkpoints(name)), FINDINGS, PREVALENCE, 32).model.double()
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    gray = torch.rand(2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projection = GrayscaleProjection.of(model, normalisation)
    assert (projection is None) == (name in ("resnet", "efficientnet"))
    assert (ClassTokenLayer.of(model) is None) == (name != "vit" or POD)
    if projection is None:
        return
    expected = model(pixel_values=normalisation(gray)).logits
    expected.square().sum().backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with projection.applied():
        logits = model(pixel_values=projection.gray_channels(gray)).logits
        logits.square().sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    for key, value in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(value.grad, gradients[key], rtol=1e-7, atol=1e-7, msg=key)


def test_swin_pads_sizes_that_its_patches_do_not_divide_so_gray_values_are_left_alone(checkpoints):
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    model = load_model(str(checkpoints("swin")), FINDINGS, PREVALENCE, 30).model
    assert GrayscaleProjection.of(model, normalisation) is None


@every
def test_maps_of_a_batch_are_those_of_its_images_and_of_the_finding_that_is_asked_for(checkpoints, tmp_path, name):
    model = load_model(str(checkpoints(name)), FINDINGS, PREVALENCE, 32).model
    model.save_pretrained(tmp_path)
    model = load_for_saliency(tmp_path, FINDINGS)
    pixels = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = saliency(model, pixels, [i % 3 for i in range(9)])
    has_attention = name.startswith(("vit", "deit", "beit", "dinov2"))
    assert (found.rollout is not None) == has_attention
    assert found.method == ("gradient-weighted" if has_attention else "integrated gradients")
    rows = found.gradient.shape[1]
    assert found.gradient.shape == (9, rows, rows) and rows > 1 and found.gradient.min() >= 0
    assert all(one.max() > one.min() for one in found.gradient)
    alone = saliency(model, pixels[8:], [2])
    np.testing.assert_allclose(found.gradient[8], alone.gradient[0], rtol=1e-3, atol=1e-3 * alone.gradient.max())
    other = saliency(model, pixels[8:], [1])
    assert np.abs(other.gradient - alone.gradient).max() > 1e-2 * np.ptp(alone.gradient)
    assert saliency(model, pixels[:0], []).gradient.shape[0] == 0


def test_rollout_is_read_where_the_head_reads():
    total = torch.arange(25.0).reshape(1, 5, 5)  # a class token and four patches
    patches = total[:, 1:].mean(1)

    def read(kind, **settings):
        config = transformers.PretrainedConfig(**settings)
        config.model_type = kind
        return _read_by_head(total, SimpleNamespace(config=config), 4)

    assert torch.equal(read("vit"), total[:, 0])
    assert torch.equal(read("beit", use_mean_pooling=False), total[:, 0])
    assert torch.equal(read("beit", use_mean_pooling=True), patches)
    assert torch.equal(read("dinov2"), (total[:, 0] + patches) / 2)


def test_without_captum_a_report_says_how_to_get_maps(checkpoints, tmp_path, monkeypatch):
    load_model(str(checkpoints("resnet")), FINDINGS, PREVALENCE, 32).model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"need captum: pip install 'ipu-trainer\[explain\]'"):
        load_for_saliency(tmp_path, FINDINGS)


# Position embeddings that Transformers of this release resamples.
RESAMPLED = [
    name for name in HERE if name in (["vit"] if POD else ["vit", "deit", "beit", "dinov2", "dinov2-registers"])
]
TAKES_ANY = ["swin", "swinv2", "convnext", "convnextv2", "resnet", "efficientnet"]


@pytest.mark.parametrize("name", RESAMPLED + TAKES_ANY)
def test_images_of_another_size_give_what_the_library_gives_them(tmp_path, name):
    folder, before = write_checkpoint(tmp_path, name)
    loaded = load_model(str(folder), FINDINGS, PREVALENCE, 48)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    more = {"interpolate_pos_encoding": True} if name in ("vit", "deit") else {}
    if name == "swinv2":  # its windows follow from its configuration's size, not from the images
        before = type(before).from_pretrained(folder, image_size=48).eval()
    with torch.no_grad():
        expected = base_of(before)(pixels, **more)[0]
    torch.testing.assert_close(hidden(base_of(loaded.model), pixels), expected, rtol=1e-5, atol=1e-5)
    resampled = "position embeddings resampled from 32 x 32 to 48 x 48 pixels"
    assert (resampled in loaded.notes) == (name in RESAMPLED)
    assert getattr(loaded.model.config, "image_size", 48) == 48
    loaded.model.save_pretrained(tmp_path / "saved")
    again = load_finished(tmp_path / "saved")
    torch.testing.assert_close(hidden(base_of(again), pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, size, reason",
    [
        ("vit", 44, "no multiple of its patches of 8"),
        ("beit-relative", 48, "relative_position_bias_table belongs to that size"),
    ],
)
def test_sizes_that_the_library_does_not_resample_are_refused(tmp_path, name, size, reason):
    folder, _ = write_checkpoint(tmp_path, name)
    with pytest.raises(ValueError, match=f"32 x 32 pixels.*{size} x {size}.*{reason}.*--size 32"):
        load_model(str(folder), FINDINGS, PREVALENCE, size)


@every
def test_the_runs_preprocessor_gives_a_pipeline_the_pixels_of_training(checkpoints, prepared, phantoms, tmp_path, name):
    """Crops, shorter sides and EfficientNet's second division are the checkpoint's; training resizes whole images."""
    data = load_prepared(prepared)
    normalisation, notes = starting_normalisation(str(checkpoints(name)), 32, "bilinear")
    cropped = CHECKPOINTS[name][2]["image_processor_type"] in (
        "BitImageProcessor",
        "DeiTImageProcessor",
        "ConvNextImageProcessor",
    )
    assert any("without the crop" in note for note in notes) == cropped
    model = load_model(
        str(checkpoints(name)), list(data.findings), data.split("train").labels.mean(axis=0), 32
    ).model.eval()
    model.save_pretrained(tmp_path)
    write_processor(tmp_path, str(checkpoints(name)), 32, "bilinear", *normalisation.values)
    saved = load_normalisation(tmp_path, 32, "bilinear")
    assert [*saved.mean, *saved.std] == pytest.approx([*normalisation.mean, *normalisation.std])
    images = data.split("test")
    pixels = ChestXrayCollator(normalisation)([images[0], images[1]])["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    expected = logits.softmax(-1) if POD else logits.sigmoid()  # 4.29's pipeline knows no multi-label models
    classify = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    files = [str(phantoms / "images" / images.table["file_name"][row]) for row in range(2)]
    for row, found in enumerate(classify(files, top_k=len(data.findings))):
        scores = {one["label"]: one["score"] for one in found}
        assert [scores[name] for name in data.findings] == pytest.approx(expected[row].tolist(), abs=1e-5)


def test_a_filter_other_than_the_datas_is_refused(checkpoints):
    with pytest.raises(ValueError, match="resizes with bilinear, the data is prepared with bicubic"):
        starting_normalisation(str(checkpoints("dinov2" if "dinov2" in HERE else "vit")), 32, "bicubic")


def test_efficientnets_processor_divides_by_std_twice(checkpoints):
    normalisation, _ = starting_normalisation(str(checkpoints("efficientnet")), 32, "bilinear")
    processor = transformers.AutoImageProcessor.from_pretrained(str(checkpoints("efficientnet")))
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    made = processor(np.stack([image] * 3, axis=-1), do_center_crop=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, normalisation(torch.from_numpy(image)[None] / 255.0), rtol=1e-4, atol=1e-4)


def edit_weights(folder, change):
    tensors = load_file(str(folder / "model.safetensors")) if (folder / "model.safetensors").is_file() else None
    file = folder / ("pytorch_model.bin" if tensors is None else "model.safetensors")
    tensors = torch.load(file) if tensors is None else tensors
    change(tensors)
    torch.save(tensors, file) if file.suffix == ".bin" else save_file(tensors, str(file), metadata={"format": "pt"})


@every
def test_a_backbone_that_lacks_a_tensor_is_refused(tmp_path, name):
    folder, _ = write_checkpoint(tmp_path, name)
    (_, kept), *_ = sorted(
        ((value.numel(), key) for key, value in read_weights(folder).items() if "layer" in key or "block" in key),
        reverse=True,
    )
    edit_weights(folder, lambda tensors: tensors.pop(kept))
    with pytest.raises(ValueError, match=r"1 of its \d+ tensors are not there"):
        load_model(str(folder), FINDINGS, PREVALENCE)


@pytest.mark.parametrize("name, depth", [("vit", "num_hidden_layers"), ("convnext", "depths")])
def test_a_backbone_with_more_layers_than_its_config_is_refused_instead_of_cut(tmp_path, name, depth):
    folder, _ = write_checkpoint(tmp_path, name)
    config = json.loads((folder / "config.json").read_text())
    config[depth] = 2 if name == "vit" else [2, 1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tensors of the backbone that a .* has no place for, such as"):
        load_model(str(folder), FINDINGS, PREVALENCE)


def test_heads_of_other_tasks_are_named_and_left_out(tmp_path):
    folder, _ = write_checkpoint(tmp_path, "vit", "ForMaskedImageModeling")
    notes = load_model(str(folder), FINDINGS, PREVALENCE).notes
    assert "not used: decoder" in notes and any("backbone without a head" in note for note in notes)


@pytest.mark.skipif("dinov2" in HERE, reason="this release of Transformers has DINOv2")
def test_a_model_that_this_release_lacks_is_refused_with_the_release_that_has_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "architectures": ["Dinov2Model"]}))
    with pytest.raises(ValueError, match=r"dinov2 \(Dinov2Model\), which needs Transformers 4.31 or later; 4.29"):
        load_model(str(tmp_path), FINDINGS, PREVALENCE)


def test_dinov3_is_taken_from_timm(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"]}))
    with pytest.raises(ValueError, match="no image classifier.*--model timm/vit_small_patch16_dinov3"):
        load_model(str(tmp_path), FINDINGS, PREVALENCE)


def test_one_channel_is_read_by_stems_of_one_channel(checkpoints, tmp_path):
    for name in ("convnext", "resnet"):
        folder, _ = write_checkpoint(tmp_path / name, name, num_channels=1)
        with pytest.raises(ValueError, match="reads 1 channel"):
            starting_normalisation(str(folder), 32, "bilinear")
        values = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(
            json.dumps({**values, "image_mean": [0.5], "image_std": [0.25]})
        )
        normalisation, _ = starting_normalisation(str(folder), 32, "bilinear")
        model = load_model(str(folder), FINDINGS, PREVALENCE, 32).model
        assert model(pixel_values=normalisation(torch.rand(2, 32, 32))).logits.shape == (2, 3)


@every
def test_stochastic_depth_is_the_models_own_where_it_has_one(prepared, checkpoints, tmp_path, name, capsys):
    given = words(prepared, checkpoints(name), tmp_path)
    default = [word for pair in zip(given[::2], given[1::2]) if pair[0] != "--drop_path" for word in pair]
    job = prepare(default)
    if name in ("resnet", "efficientnet"):
        assert (
            job.args.drop_path == 0.0
            and "no stochastic depth: its layers cannot be skipped" in dict(job.describe())["checkpoint"]
        )
        with pytest.raises(ValueError, match="--drop_path 0.2: the layers of .* cannot be skipped.*--drop_path 0"):
            prepare([*default, "--drop_path", "0.2"])
        return
    model = seeded_model(job)
    assert job.args.drop_path == 0.1
    hooks = add_drop_path(model, 0.1)
    own = getattr(model.config, "drop_path_rate", None)
    assert (own is None) == bool(hooks) and own in (None, 0.1)
    model.train()
    torch.manual_seed(0)
    first, second = (model(pixel_values=PIXELS.repeat(16, 1, 1, 1)).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)


def test_stages_that_change_shape_get_no_hooks_of_ours(checkpoints):
    model = load_model(str(checkpoints("swin")), FINDINGS, PREVALENCE).model
    with pytest.raises(
        ValueError, match="change the shape of their input.*has such a rate itself, 0.1: make the model with 0.3"
    ):
        add_drop_path(model, 0.3)
    with pytest.raises(ValueError, match="change the shape of their input.*Use drop_path=0"):
        add_drop_path(load_model(str(checkpoints("resnet")), FINDINGS, PREVALENCE).model, 0.3)


def test_batch_norm_on_replicas_is_refused_before_compiling(prepared, checkpoints, tmp_path):
    config = tmp_path / "two.json"
    config.write_text(json.dumps(IPUConfig(replication_factor=2).to_dict()))
    more = ["--backend", "simulated", "--ipu_config", str(config), "--gradient_accumulation_steps", "2"]
    with pytest.raises(ValueError, match="BatchNorm2d, whose running statistics would differ among the 2 replicas"):
        trained(prepared, checkpoints("resnet"), tmp_path / "run", *more)
    trained(prepared, checkpoints("convnext"), tmp_path / "other", *more)


@pytest.mark.parametrize("name", ["vit" if POD else "dinov2", "resnet"])
def test_a_run_from_a_checkpoint_of_another_size_says_what_it_changed_and_is_evaluated_and_reported(
    prepared, tmp_path, name, capsys
):
    folder, _ = write_checkpoint(tmp_path / "model", name, "Model", **({} if name == "resnet" else {"image_size": 48}))
    given = ["--data", str(prepared), "--model", str(folder), "--output", str(tmp_path / "run"), "--max_steps", "2"]
    more = ["--num_bootstrap", "5", "--disable_tqdm", "true", "--report_to", "none", CPU, "true"]
    assert main(["train", "chest-xray", *given, *more]) == 0
    said = capsys.readouterr().out
    assert "it holds a backbone without a head: a new linear head (classifier" in said
    assert ("position embeddings resampled from 48 x 48 to 32 x 32 pixels" in said) == (name != "resnet")
    assert ("no stochastic depth: its layers cannot be skipped" in said) == (name == "resnet")
    assert ("without the crop of its preprocessor" in said) == (name != "vit")
    text = checked_page(tmp_path / "run" / "report.html").text
    shown, hidden_ = ("integrated gradients", "rollout") if name == "resnet" else ("rollout", "integrated gradients")
    assert shown in text and hidden_ not in text
    again = ["evaluate", "chest-xray", "--run", str(tmp_path / "run"), "--data", str(prepared), "--num-bootstrap", "5"]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    first, second = (json.loads((tmp_path / one / "metrics.json").read_text()) for one in ("run", "again"))
    assert second["mean_auroc_14"] == first["mean_auroc_14"]


@pytest.mark.parametrize(
    ("image_size", "size", "reason"),
    [
        (32, 36, "36 pixels are no multiple of its patches"),  # as many patches as before: the border would not be read
        ([32, 48], 32, "Give another --model"),
    ],
)
def test_images_that_the_patches_of_a_vit_do_not_cover_are_refused(tmp_path, image_size, size, reason):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=image_size,
        patch_size=8,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        load_model(str(tmp_path), ["A", "B"], np.array([0.1, 0.2]), size)


@pytest.mark.parametrize("kind", ["Levit", "Cvt", "Pvt", "Hiera"])
def test_other_families_are_loaded_or_refused_in_one_line(tmp_path, kind):
    """Their configurations have no patch_size, a list of rates or sizes, or a rate that takes whole numbers alone."""
    if not hasattr(transformers, f"{kind}ForImageClassification"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    small = {
        "Levit": {
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        "Cvt": {"embed_dim": [8, 8, 8], "num_heads": [1, 1, 1], "depth": [1, 2, 3]},
        "Pvt": {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2],
            "image_size": 64,
        },
        "Hiera": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**small)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(tmp_path)
    findings, rates = ["A", "B", "C"], np.array([0.1, 0.2, 0.3])
    size = 96 if kind == "Pvt" else 256
    skips_layers_by(read_config(str(tmp_path)))
    if kind in ("Pvt", "Hiera"):
        with pytest.raises(UserError, match="Prepare it again with --size"):
            load_model(str(tmp_path), findings, rates, size, 0.1)
    loaded = load_model(
        str(tmp_path), findings, rates, None, 0.0 if skips_layers_by(read_config(str(tmp_path))) != "config" else 0.1
    )
    assert loaded.model.config.num_labels == 3
