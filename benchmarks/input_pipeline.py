"""The input pipeline alone: batches from the prepared store against what `datasets` offers, in turns, without any training.

    python benchmarks/input_pipeline.py --images 512 --workers 2 --output input_pipeline.json

Each variant delivers float32 (micro_batch, 3, 224, 224) and labels on the device (the GPU if there is one), and are not
used. The store's batches are augmented too, with the recipe's defaults; the others are not. The alternatives
read 1,024 px PNGs through set_transform, and arrays that `datasets.map` made of them before. Prints images/s.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch
from timing import in_turns, report
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
from vit_gpu import HALF, labels_of, prepared, write_png

from ipu_trainer.atomic import write_json
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.data.transforms import Augmentation, ChestXrayCollator
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.training.arguments import IPUTrainingArguments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def throughput_of(batches, seconds):
    """Images/s after the first batch, which waits for workers to start."""
    count, begin = 0, None
    for batch in batches:
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        if begin is None:
            begin = time.perf_counter()
            continue
        count += len(batch["labels"])
        if time.perf_counter() - begin > seconds:
            break
    return count / (time.perf_counter() - begin)


def endless(loader):
    while True:
        yield from loader


def from_store(dataset, batch, workers, seconds):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            args = IPUTrainingArguments(
                **compat.training_defaults(
                    output_dir=folder, per_device_train_batch_size=batch, dataloader_num_workers=workers,
                    remove_unused_columns=False, report_to=[], backend="host", use_cpu=DEVICE.type == "cpu",
                    dataloader_pin_memory=DEVICE.type == "cuda",
                )
            )  # fmt: skip
            tiny = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
            trainer = ChestXrayTrainer(
                model=ViTForImageClassification(tiny),
                args=args,
                train_dataset=dataset,
                data_collator=ChestXrayCollator(HALF, Augmentation(), 0),
                finding_loss=FindingLoss("bce", 0.5, None),
            )
            trainer.model.eval()  # RGB, as the alternatives deliver it
            loader = trainer.get_train_dataloader()
            return throughput_of((trainer._prepare_inputs(inputs) for inputs in endless(loader)), seconds)

    return run


def from_datasets(data, batch, workers, seconds):
    def run():
        loader = DataLoader(data, batch, shuffle=True, num_workers=workers, pin_memory=DEVICE.type == "cuda")
        moved = ({name: value.to(DEVICE) for name, value in inputs.items()} for inputs in endless(loader))
        return throughput_of(moved, seconds)

    return run


def from_files(files):
    """(through set_transform, mapped beforehand): the two usual ways of `datasets`."""
    from datasets import Dataset, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    processor = ViTImageProcessor(size={"height": 224, "width": 224})
    data = Dataset.from_dict({"image": files, "labels": labels_of(len(files)).tolist()})
    data = data.cast_column("image", ImageFeature())

    def pixels(rows, kind):
        return processor([image.convert("RGB") for image in rows["image"]], return_tensors=kind)["pixel_values"]

    mapped = data.map(lambda rows: {"pixel_values": pixels(rows, "np")}, batched=True, batch_size=32)
    mapped = mapped.remove_columns("image").with_format("torch")
    data.set_transform(lambda rows: {"pixel_values": pixels(rows, "pt"), "labels": torch.tensor(rows["labels"])})
    return data, mapped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each variant in each round")
    parser.add_argument("--output", type=Path, default=Path("input_pipeline.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.Pool(min(16, os.cpu_count() or 1)) as pool:
            files = pool.map(write_png, [(folder, number) for number in range(given.images)])
        transformed, mapped = from_files(files)
        dataset = prepared(folder, given.images)
        timed = (given.batch, given.workers, given.seconds)
        alone = (given.batch, 0, given.seconds)
        baseline = "store, no workers"  # the recipe's default
        variants = {
            baseline: from_store(dataset, *alone),
            f"store, {given.workers} workers": from_store(dataset, *timed),
            f"datasets.map before, {given.workers} workers": from_datasets(mapped, *timed),
            "datasets.map before, no workers": from_datasets(mapped, *alone),
            f"set_transform from PNGs, {given.workers} workers": from_datasets(transformed, *timed),
            "set_transform from PNGs, no workers": from_datasets(transformed, *alone),
        }
        rates, failed = in_turns(variants, given.rounds)
    text, about = report(rates, baseline, 0, "images/s")
    print(text)
    write_json(given.output, {**about, "batch": given.batch, "workers": given.workers, "failed": failed})


if __name__ == "__main__":
    main()
