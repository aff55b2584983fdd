"""ViT-B/16 on a GPU, multi-label chest X-rays: IPUTrainer from a prepared store against what a user would use instead.

    python benchmarks/vit_gpu.py --rounds 2 --output vit.json

In turns, in one process: the recipe's trainer end to end from the uint8 store; the same with its batch already on the GPU, with a
bfloat16 residual stream, without fused kernels, and with stochastic depth, as `ipu-trainer train chest-xray` has it;
Trainer in bfloat16 with batches already on the GPU; the same with torch_compile; `datasets` with set_transform from
1,024 px PNGs, 16 workers in bfloat16, and with all of Trainer's defaults. Images are synthetic. Throughput is in images/s after
the warm-up steps; all train with AdamW, clipping and Trainer's loop.
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from timing import SteadyRate, in_turns, report
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from ipu_trainer import IPUConfig
from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS
from ipu_trainer.tasks.chest_xray.data.pixel_store import StoreWriter, file_digest, writable_rows
from ipu_trainer.tasks.chest_xray.data.transforms import Augmentation, ChestXrayCollator, Normalisation
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.training.arguments import IPUTrainingArguments

HALF = Normalisation((0.5,) * 3, (0.5,) * 3)
NUM_FINDINGS = len(NIH_FINDINGS)
# Multiply-adds of one forward pass are 17.56e9 (Dosovitskiy et al., ViT-B/16 at 224 px); backward is twice forward.
FLOPS = 3 * 2 * 17.56e9


def base():
    transformers.set_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=NUM_FINDINGS, problem_type="multi_label_classification"))


def labels_of(count):
    return np.random.default_rng(0).integers(0, 2, (count, NUM_FINDINGS)).astype(np.float32)


def image(side, seed):
    """A smooth grayscale image with film grain: its PNG is about as large as an X-ray's."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 12)).astype(np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.BICUBIC), dtype=np.int16)
    return np.clip(smooth + random.normal(0, 2.0, (side, side)), 0, 255).astype(np.uint8)


def prepared(folder, count):
    """A data set of the recipe, its store filled with random images."""
    store = StoreWriter(Path(folder) / "pixels.u8", count, 224, "bilinear", "synthetic", "plan")
    rows = writable_rows(store.partial, count, 224)
    some = np.stack([image(224, seed) for seed in range(64)])
    for row in range(count):
        rows[row] = some[row % 64]
        store.commit(row, file_digest(b"synthetic"))
    rows.flush()
    store.finish("synthetic")
    table = {"patient_id": [str(row) for row in range(count)]}
    return ChestXrayDataset(store.path, np.arange(count), labels_of(count), table, list(NIH_FINDINGS))


class OnTheGpu:
    """One batch on the GPU, again and again."""

    def __init__(self, batch, count):
        self.batch, self.count = batch, count
        self.dataset = range(count * len(batch["labels"]))
        self.batch_size = len(batch["labels"])

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([self.batch] * self.count)


def recipe(dataset, batch, steps, warm_up, on_gpu=False, accumulation=1, **changes):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            args = IPUTrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, bf16=True, report_to=[],
                disable_tqdm=True, save_strategy="no", logging_steps=1000, remove_unused_columns=False, backend="host",
                logging_nan_inf_filter=False, optim="adamw_torch_fused", **changes,
            )  # fmt: skip
            meter = SteadyRate(batch * accumulation, warm_up)
            trainer = ChestXrayTrainer(
                model=base(),
                args=args,
                train_dataset=dataset,
                data_collator=ChestXrayCollator(HALF, Augmentation(), 0),
                finding_loss=FindingLoss("bce", 0.5 if batch >= 8 else 0.0, None),
                ipu_config=IPUConfig(gradient_accumulation_steps=accumulation),
                callbacks=[meter],
            )
            if on_gpu:
                given = dataset.__getitems__([(0, index) for index in range(batch)])
                resident = {"pixels": given["pixels"].cuda(), "labels": given["labels"].cuda()}
                resident.update({name: given[name] for name in ("epoch", "index")})
                trainer.get_train_dataloader = lambda: OnTheGpu(resident, steps)
            trainer.train()
            return meter.rate

    return run


def stock_on_gpu(batch, steps, warm_up, accumulation=1, **changes):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, bf16=True, report_to=[],
                disable_tqdm=True, save_strategy="no", logging_steps=1000, gradient_accumulation_steps=accumulation,
                **changes,
            )  # fmt: skip
            meter = SteadyRate(batch * accumulation, warm_up)
            count = batch * accumulation * steps
            trainer = Trainer(model=base(), args=args, train_dataset=range(count), callbacks=[meter])
            resident = {
                "pixel_values": torch.randn(batch, 3, 224, 224, device="cuda"),
                "labels": torch.from_numpy(labels_of(batch)).cuda(),
            }
            trainer.get_train_dataloader = lambda: OnTheGpu(resident, steps * accumulation)
            trainer.train()
            return meter.rate

    return run


def write_png(item):
    folder, number = item
    path = Path(folder) / f"{number}.png"
    Image.fromarray(image(1024, number)).save(path)
    return str(path)


def from_pngs(files, batch, steps, warm_up, **changes):
    from datasets import Dataset
    from datasets import Image as ImageFeature

    def run():
        processor = ViTImageProcessor(size={"height": 224, "width": 224})
        paths = [files[number % len(files)] for number in range(batch * steps)]
        data = Dataset.from_dict({"image": paths, "labels": labels_of(len(paths)).tolist()})
        data = data.cast_column("image", ImageFeature())

        def transform(rows):
            pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": torch.tensor(rows["labels"])}

        data.set_transform(transform)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, report_to=[], disable_tqdm=True,
                save_strategy="no", logging_steps=1000, remove_unused_columns=False, **changes,
            )  # fmt: skip
            meter = SteadyRate(batch, warm_up)
            Trainer(model=base(), args=args, train_dataset=data, callbacks=[meter]).train()
            return meter.rate

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=420.0, help="no new round after so many")
    parser.add_argument(
        "--profile", action="store_true", help="the profile vit_base_pod4, 1 x 128, instead of all this"
    )
    parser.add_argument("--only", default="", help="variants whose names hold this text")
    parser.add_argument("--pngs", type=Path, help="a folder of 1,024 px PNGs to read in place of synthetic ones")
    parser.add_argument("--without-pngs", action="store_true", help="leave out the variants that read PNGs")
    parser.add_argument("--output", type=Path, default=Path("vit_gpu.json"))
    given = parser.parse_args()
    batch, timed = given.batch, (given.steps, given.warm_up)
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(folder, batch * given.steps)
        variants = {
            "recipe, from the store": recipe(dataset, batch, *timed),
            "recipe, its batch on the GPU": recipe(dataset, batch, *timed, on_gpu=True),
            "recipe, from the store, bfloat16 residual": recipe(dataset, batch, *timed, bf16_residual=True),
            "recipe, from the store, no fused kernels": recipe(dataset, batch, *timed, gpu_kernels="off"),
            "recipe, from the store, stochastic depth": recipe(dataset, batch, *timed, drop_path=0.1, layer_decay=0.65),
            "Trainer bf16, on the GPU": stock_on_gpu(batch, *timed),
            "Trainer bf16, on the GPU, batch 128": stock_on_gpu(128, *timed),
            "Trainer bf16 + torch_compile, on the GPU": stock_on_gpu(batch, *timed, torch_compile=True),
        }
        if given.profile:
            variants = {
                "recipe, 1 x 128, coalesced": recipe(dataset, 1, *timed, accumulation=128),
                "Trainer, 1 x 128, on the GPU": stock_on_gpu(1, 4, 1, accumulation=128),
            }
        elif not given.without_pngs:
            files = sorted(str(file) for file in given.pngs.glob("*.png")) if given.pngs else []
            if given.pngs and not files:
                parser.error(f"--pngs {given.pngs} holds no PNG")
            if not files:
                with multiprocessing.Pool(16) as pool:
                    files = pool.map(write_png, [(folder, number) for number in range(512)])
            print(f"PNGs of {np.mean([Path(file).stat().st_size for file in files]) / 1e3:.0f} kB", flush=True)
            variants["datasets + set_transform, 16 workers, bf16"] = from_pngs(
                files, 128, 64, 40, bf16=True, dataloader_num_workers=16
            )
            variants["datasets + set_transform, all defaults"] = from_pngs(files, 8, 24, 8)
        variants = {name: run for name, run in variants.items() if given.only in name}
        rates, failed = in_turns(variants, given.rounds, given.seconds)
    text, about = report(rates, next(iter(rates)), FLOPS, "images/s")
    print(text)
    write_json(given.output, {**about, "transformers": transformers.__version__, "batch": batch, "failed": failed})


if __name__ == "__main__":
    main()
