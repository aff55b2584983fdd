"""Boxes, the pointing game, attention maps, and the labels that radiologists gave."""

import csv
import gzip
import shutil

import numpy as np
import pytest
import torch
from html_pages import checked_page
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import predictions, write_run
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from ipu_trainer.cli import main
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
from ipu_trainer.tasks.chest_xray.data.phantoms import BOXES_NAME
from ipu_trainer.tasks.chest_xray.evaluation.metrics import (
    brier_score,
    reliability,
    wilson_interval,
)
from ipu_trainer.tasks.chest_xray.evaluation.radiologist_labels import (
    agreement,
    matching,
    read_radiologist_labels,
    scores,
)
from ipu_trainer.tasks.chest_xray.evaluation.saved_evaluation import read_predictions
from ipu_trainer.tasks.chest_xray.explain.pointing_game import Box, covered_share, highest_point, is_hit, read_boxes
from ipu_trainer.tasks.chest_xray.explain.saliency import _rollout, _weighted, load_for_saliency, saliency

HEAD = "Image Index,Finding Label,Bbox [x,y,w,h]\n"


def test_boxes_are_read_as_nih_ships_them_whatever_folder_stands_before_a_name(tmp_path):
    text = HEAD + "00000001_000.png,Infiltrate,512,256,256,128,,,\nimages/00000001_000.png,Mass,0,0,1024,1024\n\n"
    (tmp_path / "b.csv").write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    boxes = read_boxes(tmp_path / "b.csv")
    assert boxes == read_boxes(tmp_path / "b.csv.gz")
    assert boxes == {"00000001_000.png": [Box("Infiltration", 0.5, 0.25, 0.25, 0.125), Box("Mass", 0, 0, 1, 1)]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,x\n", "begins with 'name,x'"),
        ("", "begins with 'nothing'"),
        (HEAD + "a.png,Mass,1,2,3\n", "line 2: 'a.png,Mass,1,2,3' is no box"),
        (HEAD + "a.png,Mass,1,2,3,4\na.png,Mass,1000,0,100,10\n", "line 3"),
        (HEAD + "a.png,Mass,nan,2,3,4\n", "line 2"),
        (HEAD + "a.png,Mass,1,2,0,4\n", "line 2"),
    ],
)
def test_a_box_that_cannot_be_is_refused_with_its_line(tmp_path, capsys, text, message):
    (tmp_path / "b.csv").write_text(text)
    run = write_run(tmp_path / "run", *predictions(5))
    assert main(["report", str(run), "--boxes", str(tmp_path / "b.csv")]) == 1
    assert message in capsys.readouterr().err
    assert not (run / "report.html").exists()


@given(st.integers(1, 16), st.integers(1, 16), st.data())
def test_a_box_around_the_highest_cell_is_a_hit_and_one_elsewhere_is_none(rows, cols, data):
    saliency_map = np.zeros((rows, cols))
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    saliency_map[row, col] = 1.0
    cell = Box("Mass", col / cols, row / rows, 1 / cols, 1 / rows)
    if rows * cols == 1:
        assert highest_point(saliency_map) is None and not is_hit(saliency_map, [cell])
        return
    assert is_hit(saliency_map, [cell])
    assert not is_hit(np.roll(saliency_map, 1, axis=1 if cols > 1 else 0), [cell])
    assert not is_hit(np.full((rows, cols), 0.3), [cell])


def test_boxes_that_overlap_are_covered_once():
    boxes = [Box("Mass", 0, 0, 0.5, 0.5), Box("Mass", 0.25, 0, 0.5, 0.5)]
    assert covered_share(boxes) == pytest.approx(0.375)


def test_the_box_of_a_phantoms_mass_is_brighter_than_the_same_place_in_the_other_lung(phantoms):
    from ipu_trainer.tasks.chest_xray.data.phantoms import PhantomAnatomy, draw_phantom

    assert sum(len(boxes) for boxes in read_boxes(phantoms / BOXES_NAME).values()) > 40
    signs, body = {}, PhantomAnatomy.draw(np.random.default_rng(0))
    with_mass = draw_phantom(body, ("Mass",), "PA", 64, np.random.default_rng(5), signs)
    ((left, top, width, height),) = signs["Mass"]
    rows, cols = slice(int(top * 64), int((top + height) * 64)), slice(int(left * 64), int((left + width) * 64))
    mirrored = slice(64 - cols.stop, 64 - cols.start)
    assert with_mass[rows, cols].mean() > with_mass[rows, mirrored].mean() + 20


def attention_maps(num_layers=3, images=2, heads=2, tokens=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(images, heads, tokens, tokens, generator=generator).softmax(-1) for _ in range(num_layers)]


def test_rollout_multiplies_mean_attention_with_the_identity_mixed_in():
    maps = attention_maps()
    for image in range(2):
        expected = np.eye(5)
        for layer in maps:
            expected = (0.5 * layer[image].numpy().mean(0) + 0.5 * np.eye(5)) @ expected
        np.testing.assert_allclose(_rollout(maps)[image], expected, rtol=1e-5)
    np.testing.assert_allclose(_rollout(maps).sum(2), 1.0, rtol=1e-5)  # attention is shared out, none is lost


def test_weighted_attention_adds_up_what_raises_the_output():
    maps, slopes = attention_maps(), [layer - 0.2 for layer in attention_maps(heads=2)]
    expected = np.eye(5)
    for layer, slope in zip(maps, slopes):
        expected = expected + np.maximum(layer[1].numpy() * slope[1].numpy(), 0).mean(0) @ expected
    np.testing.assert_allclose(_weighted(maps, slopes)[1], expected, rtol=1e-5)


def test_saliency_of_a_batch_is_that_of_its_images_and_of_the_finding_that_is_asked_for(phantoms, tmp_path):
    shutil.copytree(phantoms / "model", tmp_path / "model")
    with pytest.raises(ValueError, match="has 2 outputs for 3 findings"):
        load_for_saliency(tmp_path / "model", ["Effusion", "Mass", "Nodule"])
    model = load_for_saliency(tmp_path / "model", ["Effusion", "Mass"])
    pixels = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    columns = [i % 2 for i in range(11)]
    found = saliency(model, pixels, columns)
    assert found.rollout.shape == found.gradient.shape == (11, 4, 4)
    alone = saliency(model, pixels[9:10], columns[9:10])
    np.testing.assert_allclose(found.gradient[9], alone.gradient[0], rtol=1e-3, atol=1e-6)  # a GPU may round to TF32
    np.testing.assert_allclose(found.rollout[9], alone.rollout[0], rtol=1e-3, atol=1e-6)
    other = saliency(model, pixels[9:10], [1 - columns[9]])
    assert np.abs(other.gradient - alone.gradient).max() > 1e-7  # the map is of the finding
    np.testing.assert_array_equal(other.rollout, alone.rollout)  # rollout is not
    assert saliency(model, pixels[:0], []).gradient.shape == (0, 4, 4)


def striped(count, seed):
    """Noise with horizontal stripes (output 0) and vertical ones (output 1), each in half of the images, in a patch of its own."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 32, 32, generator=generator)
    truth = (torch.rand(count, 2, generator=generator) < 0.5).float()
    patches = torch.stack([torch.randperm(16, generator=generator)[:2] for _ in range(count)])
    stripes = torch.ones(8, 8)
    stripes[::2] = -1
    for image, output in truth.nonzero().tolist():
        row, column = divmod(int(patches[image, output]), 4)
        images[image, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += (stripes, stripes.T)[output]
    return images.expand(-1, 3, -1, -1).contiguous(), truth, patches


def small_vit():
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def small_convnext():
    sizes = {"hidden_sizes": [24, 32], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0}
    return ConvNextForImageClassification(ConvNextConfig(**sizes, num_labels=2, image_size=32))


def small_swin():
    sizes = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    return SwinForImageClassification(SwinConfig(**sizes, num_labels=2, image_size=32, drop_path_rate=0.0))


@pytest.mark.parametrize("make", [small_vit, small_convnext, small_swin])
def test_a_model_that_learned_two_signs_is_seen_to_look_at_the_one_that_is_asked_for(tmp_path, make):
    """Chance is 1/16. Gradient x activation of the last feature map (Grad-CAM) hits 7 and 14 of 19 with this ConvNeXt, and 1 and
    17 with this Swin, so pyramids have integrated gradients."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        pixels, truth, _ = striped(32, step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(pixel_values=pixels).logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    pixels, truth, patches = striped(100, 1000)
    both = [image for image in range(100) if truth[image].sum() == 2]
    for output in range(2):
        found = saliency(load_for_saliency(tmp_path, ["A", "B"]), pixels[both], [output] * len(both))
        assert (found.rollout is None) == (make is not small_vit) and found.gradient.shape[1:] == (4, 4)
        boxes = [divmod(int(patches[image, output]), 4) for image in both]
        hits = [is_hit(one, [Box("", c / 4, r / 4, 0.25, 0.25)]) for one, (r, c) in zip(found.gradient, boxes)]
        assert len(both) > 15 and sum(hits) >= 0.9 * len(both)


def test_reliability_has_every_prediction_in_one_bin_and_the_brier_score_its_definition():
    generator = np.random.default_rng(0)
    score = generator.random(500)
    y = (generator.random(500) < score).astype(float)
    bins = reliability(y, score)
    assert sum(b.count for b in bins) == 500 and len(bins) == 10
    assert sum(b.rate * b.count for b in bins) == pytest.approx(y.sum())
    # The probabilities are true: about nineteen in twenty intervals hold them.
    assert sum(b.low <= b.probability <= b.high for b in bins) >= 9
    assert len(reliability(y, np.full(500, 0.2))) == 1
    assert reliability(y, np.full(500, np.nan)) == () and reliability(y[:0], score[:0]) == ()
    assert brier_score(np.array([1.0, 0.0]), np.array([0.8, 0.4])) == pytest.approx((0.04 + 0.16) / 2)
    # Wilson 1927 as tabulated by R's binom package: 3 of 10.
    assert wilson_interval(3, 10) == (pytest.approx(0.1077912, abs=1e-6), pytest.approx(0.6032219, abs=1e-6))


LABELS = "Image Index,Patient ID,Follow-up #,Fracture,Pneumothorax,Nodule or mass,Set Id\n"


def test_radiologists_are_compared_where_names_match_and_nodule_or_mass_is_either(tmp_path):
    truth, probability = predictions(60)
    run = write_run(tmp_path / "run", truth, probability, num_bootstrap=50)
    found = read_predictions(run / "predictions.csv")
    generator = np.random.default_rng(4)
    expert = generator.random((60, 2)) < 0.4
    lines = [
        f"{name},1,0,NO,{'YES' if p else 'NO'},{'yes' if n else 'no'},test"
        for name, (p, n) in list(zip(found.file_names, expert))[:40]
    ]
    (tmp_path / "l.csv").write_text(LABELS + "\n".join([*lines, "elsewhere.png,1,0,NO,YES,YES,val"]))
    labels = read_radiologist_labels(tmp_path / "l.csv")
    assert labels.columns == ("Fracture", "Pneumothorax", "Nodule or mass") and len(labels.values) == 41
    mined = agreement(found.file_names, found.truth, found.findings, labels)
    scored = scores(found, labels, 50)
    assert [row.name for row in mined] == [row.name for row in scored] == ["Pneumothorax", "Nodule or Mass"]
    either = truth[:40, [1, 3]].max(1)  # Mass, Nodule
    assert mined[1].kappa == pytest.approx(cohen_kappa_score(expert[:40, 1], either))
    assert mined[1].sensitivity == pytest.approx(either[expert[:40, 1]].mean())
    assert mined[1].precision == pytest.approx(expert[:40, 1][either == 1].mean())
    score = found.probability[:40, [1, 3]].max(1)
    assert scored[1].against_radiologists["auroc"] == pytest.approx(roc_auc_score(expert[:40, 1], score))
    assert scored[1].against_mined["auroc"] == pytest.approx(roc_auc_score(either, score))
    assert main(["report", str(run), "--radiologist-labels", str(tmp_path / "l.csv")]) == 0
    text = checked_page(run / "report.html").sections["radiologists-labels"]
    assert "40 of the 60 evaluated images" in text and "Left out, because no finding has this name: Fracture." in text
    assert "This is too few images for a conclusion" in text


def test_labels_that_are_no_labels_are_refused(tmp_path):
    for text, message in [
        ("Image Index,Set Id\na.png,test\n", "no column of YES and NO"),
        ("Name,Mass\na.png,YES\n", "needs Image Index or Image ID"),
        (LABELS + "a.png,YES\n", "1 lines with another number"),
    ]:
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_radiologist_labels(tmp_path / "l.csv")
    assert matching("pleural thickening", NIH_FINDINGS) == ("Pleural_Thickening",)
    assert matching("Nodule or mass", ("Mass",)) == ()


def test_a_report_on_the_sample_of_nih_counts_its_boxes_and_radiologist_labels(nih_sample, phantoms, tmp_path):
    """Images with a box or a radiologist's label, and some without either, split as NIH does."""
    official = nih_sample / "official"
    boxed = read_boxes(official / "BBox_List_2017.csv")
    read = read_radiologist_labels(official / "google2019_nih-chest-xray-labels.csv.gz")
    here = sorted(path.name for path in (nih_sample / "images").iterdir())
    wanted = {name for name in here if name in boxed or name in read.values} | set(here[:40])
    with gzip.open(official / "Data_Entry_2017_v2020.csv.gz", "rt", newline="") as file:
        table = [row for number, row in enumerate(csv.reader(file)) if number == 0 or row[0] in wanted]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    (tmp_path / "images").mkdir()
    for name in wanted:
        shutil.copyfile(nih_sample / "images" / name, tmp_path / "images" / name)
    command = ["prepare", "chest-xray", "--csv", str(tmp_path / "labels.csv"), "--images", str(tmp_path / "images")]
    command += [
        "--train-val-list",
        str(official / "train_val_list.txt"),
        "--test-list",
        str(official / "test_list.txt"),
    ]
    assert main([*command, "--size", "32", "--workers", "1", "--output", str(tmp_path / "data")]) == 0
    data = load_prepared(tmp_path / "data")
    test = data.split("test")
    shutil.copytree(phantoms / "model", tmp_path / "run")
    config = ViTConfig.from_pretrained(phantoms / "model", num_labels=len(data.findings))
    ViTForImageClassification(config).save_pretrained(tmp_path / "run")
    _, probability = predictions(len(test), data.findings)
    write_run(
        tmp_path / "run", test.labels, probability, data.findings, test.table["file_name"],
        data={"folder": str(tmp_path / "data"), "fingerprint": data.fingerprint, "size": 32},
    )  # fmt: skip
    command = ["report", str(tmp_path / "run"), "--boxes", str(official / "BBox_List_2017.csv"), "--radiologist-labels"]
    assert main([*command, str(official / "google2019_nih-chest-xray-labels.csv.gz")]) == 0
    page = checked_page(tmp_path / "run" / "report.html")
    boxes_here = sum(name in boxed for name in test.table["file_name"])
    pairs = sum(len({box.finding for box in boxed[name]}) for name in test.table["file_name"] if name in boxed)
    text = page.sections["localisation"]
    assert f"{boxes_here} of the {len(test)} evaluated images have boxes, {pairs} pairs" in text and boxes_here > 20
    assert "the file lists 880 images" in text and "This is a small number" in text and "gradient-weighted" in text
    labelled = sum(name in read.values for name in data.split("all").table["file_name"])
    text = page.sections["radiologists-labels"]
    assert f"{labelled} of all {len(data.split('all'))} prepared ones; the file has labels of 4,376 images" in text
    assert "Fracture, Airspace opacity" in text and "Nodule or Mass" in text and labelled > 20
    assert sum(name == "src" for _, name, _ in page.attributes) >= 3 * 12
