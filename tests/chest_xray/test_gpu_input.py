"""The input of a GPU: stored bytes, which it augments and normalises as the CPU's collator does; a patch projection of one channel."""

import copy

import pytest
import torch
from gpu_watch import steps_without_waiting
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.data.augmentation import augment, augment_images
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.model.grayscale_input import GrayscaleProjection
from ipu_trainer.tasks.chest_xray.model.inputs import Normalisation, collate_stored
from ipu_trainer.tasks.chest_xray.train import prepare
from ipu_trainer.tasks.recipe.recipe import seeded_model
from ipu_trainer.training.acceleration.input_pipeline import copy_to_device

NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config).double().train()


def test_a_gray_projection_is_exact_in_float64_and_leaves_no_trace():
    model = vit()
    gray = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    names = list(model.state_dict())
    results = []
    projection = GrayscaleProjection.of(model, NORMALISATION)
    for folded in (False, True):
        model.zero_grad()
        if folded:
            with projection.applied():
                loss = model(pixel_values=GrayscaleProjection.gray_channels(gray), labels=labels).loss
        else:
            loss = model(pixel_values=NORMALISATION(gray), labels=labels).loss
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (loss, gradients), (folded_loss, folded_gradients) = results
    torch.testing.assert_close(folded_loss, loss, rtol=0, atol=1e-13)
    for name, gradient in gradients.items():
        torch.testing.assert_close(folded_gradients[name], gradient, rtol=0, atol=1e-12)
    assert list(model.state_dict()) == names
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_other_first_convolutions_are_left_alone():
    assert GrayscaleProjection.of(nn.Linear(2, 2), NORMALISATION) is None
    assert GrayscaleProjection.of(nn.Conv2d(1, 4, 4, 4), NORMALISATION) is None
    assert GrayscaleProjection.of(nn.Conv2d(3, 4, 3, 1, padding=1), NORMALISATION) is None
    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=16)
    assert GrayscaleProjection.of(ConvNextForImageClassification(config), NORMALISATION) is not None


def trained(prepared, phantoms, folder, feed, *more, use_cpu=True):
    words = [
        "--data", str(prepared), "--model", str(phantoms / "model"), "--output", str(folder), "--num_train_epochs", "1",
        "--per_device_train_batch_size", "16", "--precision", "fp32", "--disable_tqdm", "true", "--learning_rate", "1e-3",
        "--" + compat.field_name("use_cpu"), str(use_cpu), "--erasing", "0.5", *more,
    ]  # fmt: skip
    job = prepare(words)
    trainer = job.trainer(model=seeded_model(job))
    if feed:
        trainer._augment_on_gpu()
        assert trainer.data_collator is collate_stored
    trainer.train()
    return trainer, job


@pytest.mark.parametrize("gray", [True, False])
def test_training_on_bytes_ends_in_the_same_weights_and_evaluation(prepared, phantoms, tmp_path, monkeypatch, gray):
    """On this machine the "GPU" is the CPU; the CUDA test below does it on one."""
    if not gray:
        monkeypatch.setattr(GrayscaleProjection, "of", lambda *_: None)
    plain, job = trained(prepared, phantoms, tmp_path / "plain", False)
    fed, _ = trained(prepared, phantoms, tmp_path / "fed", True)
    tolerance = {"rtol": 0, "atol": 1e-4 if gray else 0.0}  # folding rounds, and AdamW divides small numbers
    for (name, value), other in zip(plain.model.state_dict().items(), fed.model.state_dict().values()):
        torch.testing.assert_close(other, value, msg=name, **tolerance)
    before, after = plain.evaluate(), fed.evaluate()
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-5)
    assert fed.probabilities(job.validation_set) == pytest.approx(plain.probabilities(job.validation_set), abs=1e-4)
    assert fed.state.total_flos == plain.state.total_flos > 0


def test_bytes_reach_the_model_once_and_are_augmented_there(prepared, phantoms, tmp_path):
    trainer, job = trained(prepared, phantoms, tmp_path, True)
    batch = collate_stored([job.train_set[(0, 1)], job.train_set[(0, 2)]])
    assert batch["pixels"].dtype == torch.uint8
    trainer.model.train()
    made = trainer.prepare_inputs(copy.copy(batch))
    expected = trainer._collator_on_gpu(batch)
    torch.testing.assert_close(
        trainer._collator_on_gpu.normalisation(made["gray"]), expected["pixel_values"], rtol=0, atol=0
    )
    trainer.model.eval()
    torch.testing.assert_close(trainer.prepare_inputs(batch)["pixel_values"], expected["pixel_values"], rtol=0, atol=0)


def test_images_are_gathered_into_pinned_memory_while_a_gpu_is_in_use(prepared, monkeypatch):
    dataset, keys = load_prepared(prepared).split("train"), [(0, 5), (0, 0), (0, 5)]
    plain, empty, pinned = dataset.__getitems__(keys), torch.empty, []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory, **named: pinned.append(pin_memory) or empty(*shape, **named)
    )
    collate_stored_there = dataset.__getitems__(keys)
    assert pinned == [True]
    torch.testing.assert_close(collate_stored_there, plain, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_augments_as_a_cpu_does(prepared, phantoms, tmp_path):
    trainer, job = trained(prepared, phantoms, tmp_path, False, use_cpu=False)
    batch = collate_stored([job.train_set[(3, index)] for index in range(8)])
    expected = trainer._collator_on_gpu(batch)["pixel_values"]
    collator = trainer._collator_on_gpu
    assert trainer._augment_images is not augment_images  # compiled
    for compute in (augment_images, trainer._augment_images):
        given = (batch["pixels"].cuda(), batch["epoch"], batch["index"], collator.augmentation, collator.seed)
        on_gpu = collator.normalisation(augment(*given, compute)).cpu()
        # Rotation samples between pixels: the two round its grid differently.
        torch.testing.assert_close(on_gpu, expected, rtol=0, atol=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_is_sent_beside_a_gpus_work_arrives_before_it_is_read():
    device = torch.device("cuda")
    batches = [torch.full((1 << 22,), number, dtype=torch.uint8) for number in range(40)]
    busy, sums = torch.randn(4096, 4096, device=device), []
    for batch in batches:
        busy = (busy @ busy).clamp(-1, 1)
        there = copy_to_device(batch, device)
        sums.append(there.sum(dtype=torch.int64))
        del there  # its memory may hold another batch soon
    assert torch.stack(sums).tolist() == [number << 22 for number in range(40)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "more",
    [(), ("--compile", "off"), ("--bf16_residual", "true"), ("--gpu_kernels", "off")],
)
def test_no_step_waits_for_the_gpu(prepared, phantoms, tmp_path, more):
    words = [
        "--data", str(prepared), "--model", str(phantoms / "model"), "--output", str(tmp_path), "--max_steps", "8",
        "--per_device_train_batch_size", "16", "--disable_tqdm", "true", "--logging_steps", "1000", "--erasing", "0.5",
        "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", *more,
    ]  # fmt: skip
    job = prepare(words)
    trainer = job.trainer(model=seeded_model(job))
    assert steps_without_waiting(trainer) == 4


@pytest.mark.skipif(not hasattr(Trainer, "get_batch_samples"), reason="transformers reads batches in its loop")
def test_a_run_says_how_long_it_waited_for_data(prepared, phantoms, tmp_path):
    trainer, _ = trained(prepared, phantoms, tmp_path, False)
    assert 0 < trainer.data_wait_share < 1
