import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ipu_trainer.config.batching import BatchGeometry
from ipu_trainer.tasks.chest_xray.data.augmentation import Augmentation, augment
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.sampler import FindingBatchSampler, batch_sampler
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, Normalisation, load_normalisation

geometries = st.builds(
    BatchGeometry, st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 2)
)


def labels_of(num_samples):
    return np.eye(5, dtype=np.float32)[np.arange(num_samples) % 5]


@settings(deadline=None)
@given(geometries, st.integers(100, 160), st.sampled_from(["drop", "pad"]), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_visits_samples_once_in_whole_host_steps(geometry, num_samples, tail, seed, epoch):
    sampler = FindingBatchSampler(labels_of(num_samples), geometry, seed=seed, tail=tail)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    visited = [position for batch in batches for _, position in batch]
    assert len(visited) % geometry.samples_per_host_step == 0
    assert all(len(batch) == geometry.micro_batch for batch in batches)
    assert all(own == epoch for batch in batches for own, _ in batch)
    assert len(set(visited)) == (min(num_samples, len(visited)))
    again = FindingBatchSampler(labels_of(num_samples), geometry, seed=seed, tail=tail)
    again.set_epoch(epoch)
    assert list(again) == batches


@settings(deadline=None)
@given(geometries, st.integers(100, 160), st.data())
def test_processes_share_every_weight_update_without_overlap_or_loss(geometry, num_samples, data):
    processes = data.draw(st.sampled_from([count for count in (1, 2, 4) if geometry.replicas % count == 0]))
    alone = list(FindingBatchSampler(labels_of(num_samples), geometry, seed=1))
    shares = [
        list(
            FindingBatchSampler(labels_of(num_samples), geometry, seed=1, process_index=index, num_processes=processes)
        )
        for index in range(processes)
    ]
    per_update = geometry.gradient_accumulation * geometry.replicas
    each = per_update // processes
    for update in range(len(alone) // per_update):
        whole = sorted(key for batch in alone[update * per_update : (update + 1) * per_update] for key in batch)
        together = sorted(
            key for share in shares for batch in share[update * each : (update + 1) * each] for key in batch
        )
        assert together == whole


def test_resuming_continues_without_replay():
    geometry = BatchGeometry(4, 2)
    whole = FindingBatchSampler(labels_of(100), geometry, seed=3)
    whole.set_epoch(2)
    expected = list(whole)
    resumed = FindingBatchSampler(labels_of(100), geometry, seed=3)
    resumed.load_state_dict({"epoch": 2, "micro_batch": 7})
    assert resumed.state_dict() == {"epoch": 2, "micro_batch": 7}
    assert list(resumed) == expected[7:]
    assert list(resumed) == expected
    with pytest.raises(ValueError, match="from 0 to 24"):
        resumed.start_at(25)


def test_balance_draws_rare_findings_as_often():
    labels = np.zeros((1000, 2), dtype=np.float32)
    labels[:, 0] = 1
    labels[:20] = [0, 1]
    sampler = FindingBatchSampler(labels, BatchGeometry(10), balance=1.0, seed=0)
    rare = np.mean([np.isin(sampler.order(epoch), np.arange(20)).mean() for epoch in range(20)])
    assert 0.45 < rare < 0.55


@pytest.mark.parametrize(
    "options, message",
    [
        ({"balance": 2.0}, "balance"),
        ({"tail": "keep"}, "tail"),
        ({"process_index": 3}, "process_index"),
        ({"num_processes": 2}, "cannot be spread"),
        ({"balance": 0.5, "shuffle": False}, "shuffle"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FindingBatchSampler(labels_of(50), BatchGeometry(4), **options)


def test_batches_are_gathered_whole_and_workers_give_the_same(prepared):
    dataset = load_prepared(prepared).split("train")
    sampler = FindingBatchSampler(dataset.labels, BatchGeometry(8), seed=0)
    collator = ChestXrayCollator(Normalisation((0.5,) * 3, (0.5,) * 3), Augmentation(), seed=7)
    alone = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collator))
    workers = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=2))
    assert len(alone) == len(workers) > 0
    for one, other in zip(alone, workers):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["pixels"], dataset[3]["pixels"])


@pytest.mark.parametrize("name, value", [(None, None), ("erasing", 0.8), ("horizontal_flip", True)])
def test_a_sample_is_augmented_the_same_in_any_batch(name, value):
    augmentation = Augmentation(**({name: value} if name else {}))
    pixels = torch.randint(0, 256, (6, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    epoch, index = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([5, 9, 5, 9, 5, 9])
    whole = augment(pixels, epoch, index, augmentation, seed=3)
    for position in range(6):
        one = slice(position, position + 1)
        alone = augment(pixels[one], epoch[one], index[one], augmentation, seed=3)
        assert torch.allclose(alone[0], whole[position], atol=1e-6)  # a batch of one takes other vector code
    assert not torch.equal(whole[0], augment(pixels, epoch + 1, index, augmentation, seed=3)[0])
    assert not torch.equal(whole[0], augment(pixels, epoch, index, augmentation, seed=4)[0])
    assert 0.0 <= float(whole.min()) and float(whole.max()) <= 1.0


def test_samples_outside_training_are_left_as_they_are():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    outside = augment(pixels, torch.tensor([-1]), torch.tensor([0]), Augmentation(), seed=0)
    assert torch.equal(outside, pixels.float() / 255)


def test_each_augmentation_does_something_by_itself():
    gray = torch.linspace(0, 255, 32 * 32).reshape(1, 32, 32).to(torch.uint8)
    off = {
        name: 0.0
        for name in ("rotation_degrees", "scale", "aspect", "shift", "brightness", "contrast", "gamma", "erasing")
    }
    key = (torch.tensor([1]), torch.tensor([2]))
    for name in off:
        changed = augment(gray, *key, Augmentation(**{**off, name: 0.9 if name == "erasing" else 0.4}), seed=1)
        assert not torch.equal(changed, gray.float() / 255), name


def test_normalisation_equals_the_models_processor(phantoms, prepared):
    from PIL import Image
    from transformers import AutoImageProcessor

    data = load_prepared(prepared)
    normalisation = load_normalisation(phantoms / "model", 32, "bilinear")
    batch = ChestXrayCollator(normalisation)(data.split("all").__getitems__([0, 1]))
    processor = AutoImageProcessor.from_pretrained(phantoms / "model")
    for position in (0, 1):
        image = Image.open(phantoms / "images" / data.split("all").table["file_name"][position]).convert("RGB")
        theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))[0]
        assert torch.allclose(batch["pixel_values"][position], theirs, atol=1e-6)


def test_a_model_that_wants_other_pixels_is_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match="wants 32 x 32 pixels, the data is prepared at 64 x 64. .* --size 32"):
        load_normalisation(phantoms / "model", 64, "bilinear")
    with pytest.raises(ValueError, match="--resample bilinear"):
        load_normalisation(phantoms / "model", 32, "bicubic")
    shutil.copy(phantoms / "model" / "config.json", tmp_path)
    with pytest.raises(ValueError, match="never assumed"):
        load_normalisation(tmp_path, 32, "bilinear")


def test_the_tutorials_collator_stacks_examples():
    examples = [{"pixel_values": np.ones((3, 4, 4), np.float32), "labels": [0, 1]} for _ in range(5)]
    batch = batch_sampler(examples)
    assert batch["pixel_values"].shape == (5, 3, 4, 4)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (5, 2)
