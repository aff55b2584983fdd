"""Throughput of preparing images: this package against `datasets.map` + ViTImageProcessor, alternating on the same cores.

    python benchmarks/prepare.py --num-synthetic 300 --workers 2 --output prepare.json [--real CSV DIR]

Synthetic images are 1024 px phantoms with grain, so that their PNGs are about as large as NIH's (400 kB). Prints images/s
of both, the ratio of each pair of runs, the bytes on disk, the largest difference to Pillow's own pixels, and how much memory
all processes together take, pages of mapped files left out, for each of `--memory-files` (hard links to small images).
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray.data import phantoms
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare


def write_synthetic(folder, count):
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels", "Patient ID"])
        body = phantoms.PhantomAnatomy.draw(generator)
        base = phantoms.draw_phantom(body, (), "PA", 1024, generator).astype(np.float32)
        for number in range(count):
            grain = generator.normal(0, 1.3, base.shape)
            pixels = np.clip(base + grain + generator.uniform(-10, 10), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png")
            table.writerow([f"{number:05d}.png", "Mass", number])
    return folder / "labels.csv", folder / "images"


def ours(csv_path, images, workers, size=224, check=None):
    """(images/s, bytes an image); check, if given, is called with the finished folder."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        settings = PrepareSettings(
            csv_path, images, Path(scratch) / "out", workers=workers, size=size, only_present=True, skip_bad=True
        )
        summary = prepare(settings, progress=False)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in (Path(scratch) / "out").rglob("*") if path.is_file())
        if check is not None:
            check(Path(scratch) / "out")
        return summary.num_images / seconds, size / summary.num_images


def largest_difference(csv_path, images, workers):
    """Over all pixels of all images: the store's against those of Image.open, convert("L") and resize."""
    found = []

    def check(folder):
        everything = load_prepared(folder).split("all")
        for number, name in enumerate(everything.table["file_name"]):
            expected = Image.open(images / name).convert("L").resize((224, 224), Image.Resampling.BILINEAR)
            stored = everything[number]["pixels"].numpy()
            found.append(int(np.abs(stored.astype(int) - np.asarray(expected, dtype=int)).max()))

    ours(csv_path, images, workers, check=check)
    return max(found)


def peak_memory(count, workers):
    """(MB of this process and its workers at their peak beyond what was there before, seconds)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        generator = np.random.default_rng(0)
        for number in range(64):
            Image.fromarray(generator.integers(0, 256, (64, 64)).astype(np.uint8)).save(folder / f"{number}.png")
        with (folder / "labels.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["Image Index", "Finding Labels", "Patient ID"])
            for number in range(count):
                os.link(folder / f"{number % 64}.png", folder / "images" / f"{number:06d}.png")
                table.writerow([f"{number:06d}.png", "Mass", number // 4])
        before, peak, done = _own_bytes(), 0, threading.Event()

        def watch():
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, _own_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        try:
            ours(folder / "labels.csv", folder / "images", workers, size=32)
        finally:
            done.set()
            watcher.join()
        return (peak - before) / 1e6, time.perf_counter() - started


def _own_bytes():
    """Of this process and its children; pages that they share count once, pages of files not at all."""
    total, me = 0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total


def usual(images, workers):
    import datasets
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 224, "width": 224})

    def process(batch):
        images = [Image.open(path).convert("RGB") for path in batch["path"]]
        return {"pixel_values": processor(images, return_tensors="np")["pixel_values"]}

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
    difference = largest_difference(csv_path, images, workers)  # and the first touch of files
    pairs = [(ours(csv_path, images, workers), usual(images, workers)) for _ in range(rounds)]
    ratios = [mine[0] / other[0] for mine, other in pairs]
    row = {
        "ours_images_per_s": [mine[0] for mine, _ in pairs],
        "datasets_map_images_per_s": [other[0] for _, other in pairs],
        "ratios": ratios,
        "largest_pixel_difference_to_pillow": difference,
        "ours_bytes_per_image": pairs[0][0][1],
        "datasets_map_bytes_per_image": pairs[0][1][1],
    }
    print(
        f"{name}: {statistics.median(row['ours_images_per_s']):.0f} against "
        f"{statistics.median(row['datasets_map_images_per_s']):.0f} images/s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {rounds} pairs), "
        f"{row['datasets_map_bytes_per_image'] / row['ours_bytes_per_image']:.1f} times smaller on disk, "
        f"largest difference to Pillow {difference}",
        flush=True,
    )
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-synthetic", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-files", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--real", type=Path, nargs=2, action="append", default=[], metavar=("CSV", "DIR"))
    parser.add_argument("--output", type=Path, default=Path("prepare.json"))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(peak_memory(arguments.memory_of, arguments.workers)))
        return
    results = {"memory": {}}
    for count in arguments.memory_files:
        # In a process of its own: memory that an earlier run left behind would be used again.
        command = [sys.executable, __file__, "--workers", str(arguments.workers), "--memory-of", str(count)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        megabytes, seconds = json.loads(output)
        results["memory"][count] = {"megabytes": megabytes, "seconds": seconds}
        print(f"{count:,} files: {megabytes:.0f} MB more at the peak, {seconds:.0f} s", flush=True)
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
