"""How long a plan takes: measuring the model and searching the whole space, after imports. The aim is under 2 seconds on pod16.

    python benchmarks/plan.py [--rounds 3] [--output plan.json]

12-layer models at three global batches; BERT-large beside them. Each is the slowest of the rounds, everything measured anew.
`ipu-trainer --help` and the whole command `plan` are timed in processes of their own, so with imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import transformers

from ipu_trainer.machine.hardware import find_system
from ipu_trainer.planner import load
from ipu_trainer.planner.search import search
from ipu_trainer.planner.workload import measure

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CASES = [
    ("ViT-B/16", transformers.ViTConfig(num_labels=14), "image-classification", None, 128),
    ("BERT-base", transformers.BertConfig(), "masked-lm", 512, 1024),
    ("GPT-2", transformers.GPT2Config(), "causal-lm", 1024, 1024),
    ("T5-small", transformers.T5Config(), "seq2seq-lm", 512, 1024),
    ("BERT-base", transformers.BertConfig(), "masked-lm", 128, 65536),
    ("BERT-large (24 layers)", transformers.BertConfig(**LARGE), "masked-lm", 128, 65536),
]


def seconds(config, task: str, length, batch: int) -> tuple[float, int, int]:
    load.loads.cache_clear()
    load.all_loads.cache_clear()
    began = time.perf_counter()
    result = search(measure(config, task, length), find_system("pod16"), batch)
    return time.perf_counter() - began, result.num_candidates, len(result.plans)


def process_seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ipu_trainer.cli", *words], capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    measure(transformers.ViTConfig(image_size=32, patch_size=8, num_hidden_layers=2), "image-classification")  # imports
    numbers = {}
    for name, config, task, length, batch in CASES:
        rounds = [seconds(config, task, length, batch) for _ in range(arguments.rounds)]
        slowest, candidates, plans = max(item[0] for item in rounds), *rounds[0][1:]
        numbers[f"{name}, {length or 'image'}, global batch {batch}"] = slowest
        asked = f"{name:24}{length or 'image':>6} tokens, global batch {batch:>6}"
        print(f"{asked}: {slowest:.2f} s, {candidates:,} candidates, {plans} plans")
    with tempfile.TemporaryDirectory() as folder:
        transformers.ViTConfig(num_labels=14, architectures=["ViTForImageClassification"]).save_pretrained(folder)
        numbers["ipu-trainer --help"] = process_seconds(["--help"])
        numbers["ipu-trainer plan, ViT-B/16 on pod16"] = process_seconds(
            ["plan", "--model", folder, "--system", "pod16"]
        )
    for name in ("ipu-trainer --help", "ipu-trainer plan, ViT-B/16 on pod16"):
        print(f"{name}: {numbers[name]:.2f} s with imports")
    if arguments.output:
        arguments.output.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
