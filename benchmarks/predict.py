"""Images/s of `ipu-trainer predict` against Transformers' pipeline("image-classification") with its best batch size, in turns.

    python benchmarks/predict.py --run RUN --images FOLDER --count 701 --rounds 3 --output predict.json
    python benchmarks/predict.py --run RUN --images FOLDER --memory 200 2000

Both read the same files from the disk and start with the model in memory. The pipeline's batch size, its loader processes and, for
bf16 on a GPU, its weights in bfloat16 are those that are fastest on the first images. --memory prints the peak resident memory
of a process that predicts so many images (the files in turns, under other names).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import in_turns, report
from transformers import pipeline

from ipu_trainer import load_run
from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray.data.image_paths import find_images
from ipu_trainer.tasks.chest_xray.predict import RunPredictor
from ipu_trainer.tasks.chest_xray.prediction_table import predict_to_csv

CUDA = torch.cuda.is_available()


def predict_rate(predictor, paths):
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        rejected = predict_to_csv(predictor, paths, Path(scratch) / "predictions.csv", progress=False)
        assert not rejected
        return len(paths) / (time.perf_counter() - begin)


def pipeline_rate(run, paths, batch_size, workers, dtype, found=None):
    classify = pipeline(
        "image-classification", model=str(run), device=0 if CUDA else "cpu", batch_size=batch_size, dtype=dtype
    )
    begin = time.perf_counter()
    answers = list(classify(paths, top_k=1000, num_workers=workers))
    rate = len(paths) / (time.perf_counter() - begin)
    if found is not None:
        found.update(zip(paths, answers))
    return rate


def best_pipeline(run, paths, dtypes):
    """(batch size, loader processes, dtype) with the highest rate on these images."""
    sizes = (1, 8, 32, 64, 128) if CUDA else (1, 2, 4, 8, 16)
    trials = {}
    for dtype in dtypes:
        for size in sizes:
            for workers in (0, 8) if CUDA else (0,):
                pipeline_rate(run, paths[:8], size, workers, dtype)
                trials[size, workers, dtype] = pipeline_rate(run, paths, size, workers, dtype)
                print(f"pipeline, batch {size}, {workers} workers, {dtype}: {trials[size, workers, dtype]:.1f} /s")
    return max(trials, key=trials.get)


def peak_memory(run, images, count):
    """Bytes of a new process that predicts count images."""
    command = [sys.executable, __file__, "--run", str(run), "--images", str(images), "--in-this-process", str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def predict_many(run, paths, count):
    """The paths in turns, each repetition through another name of its folder: predict reads no path twice."""
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        for number in range(count):
            link = Path(scratch) / f"{number:07d}.png"
            link.symlink_to(Path(paths[number % len(paths)]).resolve())
            names.append(str(link))
        predict_to_csv(RunPredictor(load_run(run)), names, Path(scratch) / "o.csv", progress=False)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=701)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--in-this-process", type=int)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    paths = find_images([arguments.images])
    if arguments.in_this_process:
        print(predict_many(arguments.run, paths, arguments.in_this_process))
        return
    if arguments.memory:
        peaks = {count: peak_memory(arguments.run, arguments.images, count) for count in arguments.memory}
        print("\n".join(f"{count:>9,} images: {peak / 2**20:,.0f} MiB" for count, peak in peaks.items()))
        return
    paths = paths[: arguments.count]
    dtypes = [torch.float32, torch.bfloat16] if CUDA and arguments.precision == "bf16" else [torch.float32]
    best = best_pipeline(arguments.run, paths[: 256 if CUDA else 48], dtypes)
    predictor = RunPredictor(load_run(arguments.run), arguments.precision)
    predict_rate(predictor, paths[:64])
    answers = {}
    variants = {
        f"predict, {arguments.precision}": lambda: predict_rate(predictor, paths),
        f"pipeline, batch {best[0]}, {best[1]} workers": lambda: pipeline_rate(arguments.run, paths, *best, answers),
    }
    rates, _ = in_turns(variants, arguments.rounds)
    text, about = report(rates, next(iter(variants)), None, "images/s")
    found = predictor.predict(paths)
    scores = [{answer["label"]: answer["score"] for answer in answers[path]} for path in found.file_names]
    difference = max(
        abs(score[name] - value)
        for score, row in zip(scores, found.probability)
        for name, value in zip(found.findings, row)
    )
    print(f"{text}\n{len(paths)} images; largest difference of a probability {difference:.2g}")
    about.update(images=len(paths), precision=arguments.precision, pipeline=[str(value) for value in best])
    about["largest_difference"] = difference
    if arguments.output:
        write_json(arguments.output, about)
    else:
        print(json.dumps(about["ratios"]))


if __name__ == "__main__":
    main()
