"""Preparing images: this package against `datasets.map` + ViTImageProcessor, in turns, on the same cores.

    python benchmarks/prepare.py --num-synthetic 300 --workers 2 --output prepare.json [--real CSV DIR]

Synthetic pictures are 1024 px phantoms with grain, so that their PNGs are about as large as NIH's (400 kB). Prints images/s
of both, the ratio of each pair of runs, and the bytes on disk.
"""

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray import phantoms
from ipu_trainer.tasks.chest_xray.prepare import PrepareSettings, prepare


def write_synthetic(folder, count):
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels", "Patient ID"])
        body = phantoms._Body.draw(generator)
        base = phantoms.draw_phantom(body, (), "PA", 1024, generator).astype(np.float32)
        for number in range(count):
            grain = generator.normal(0, 1.3, base.shape)
            pixels = np.clip(base + grain + generator.uniform(-10, 10), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png")
            table.writerow([f"{number:05d}.png", "Mass", number])
    return folder / "labels.csv", folder / "images"


def ours(csv_path, images, workers):
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        settings = PrepareSettings(
            csv_path, images, Path(scratch) / "out", workers=workers, only_present=True, skip_bad=True
        )
        summary = prepare(settings, progress=False)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in (Path(scratch) / "out").rglob("*") if path.is_file())
        return summary.num_images / seconds, size / summary.num_images


def usual(images, workers):
    import datasets
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 224, "width": 224})

    def process(batch):
        pictures = [Image.open(path).convert("RGB") for path in batch["path"]]
        return {"pixel_values": processor(pictures, return_tensors="np")["pixel_values"]}

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(str(path) for path in images.iterdir() if path.suffix == ".png")
        started = time.perf_counter()
        data = datasets.Dataset.from_dict({"path": paths})
        cache = {"num_proc": workers, "batched": True, "batch_size": 32, "remove_columns": ["path"]}
        data = data.map(process, cache_file_name=str(Path(scratch) / "cache.arrow"), **cache)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
        return len(data) / seconds, size / len(data)


def compare(name, csv_path, images, workers, rounds):
    pairs = [(ours(csv_path, images, workers), usual(images, workers)) for _ in range(rounds)]
    ratios = [mine[0] / other[0] for mine, other in pairs]
    row = {
        "ours_images_per_s": [mine[0] for mine, _ in pairs],
        "datasets_map_images_per_s": [other[0] for _, other in pairs],
        "ratios": ratios,
        "ours_bytes_per_image": pairs[0][0][1],
        "datasets_map_bytes_per_image": pairs[0][1][1],
    }
    print(
        f"{name}: {statistics.median(row['ours_images_per_s']):.0f} against "
        f"{statistics.median(row['datasets_map_images_per_s']):.0f} images/s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {rounds} pairs), "
        f"{row['datasets_map_bytes_per_image'] / row['ours_bytes_per_image']:.1f} times smaller on disk",
        flush=True,
    )
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-synthetic", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real", type=Path, nargs=2, action="append", default=[], metavar=("CSV", "DIR"))
    parser.add_argument("--output", type=Path, default=Path("prepare.json"))
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        csv_path, images = write_synthetic(Path(scratch), arguments.num_synthetic)
        results["synthetic 1024 px"] = compare(
            "synthetic 1024 px", csv_path, images, arguments.workers, arguments.rounds
        )
    for csv_path, images in arguments.real:
        results[images.name] = compare(images.name, csv_path, images, arguments.workers, arguments.rounds)
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()
