"""What the simulator's executor costs over a plain PyTorch loop with the same micro-batches, and what importing it costs.

    python benchmarks/simulator.py [--rounds 5] [--output simulator.json]

One thread, ViT-Ti at 224 px, micro-batch 8, paired in one process: loop, executor, loop, executor, ... with AdamW. The
aim is a ratio of at most 1.05. The import is timed in processes of their own, against `import torch` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import ViTConfig, ViTForImageClassification

import ipu_trainer.simulator as poptorch

MICRO_BATCH = 8


def small_vit() -> ViTForImageClassification:
    """ViT-Ti/16: 192 wide, 12 layers, 3 heads."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=15)
    )


class WithLoss(torch.nn.Module):
    """The model and its loss, as both contestants run it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_vit()

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(pixels).logits, labels)


def seconds(function, *args) -> float:
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def import_seconds(statement: str) -> float:
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches an update (default 2)")
    parser.add_argument("--output", help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    accumulation = arguments.accumulation
    pixels, labels = (
        torch.randn(MICRO_BATCH * accumulation, 3, 224, 224),
        torch.randint(0, 15, (MICRO_BATCH * accumulation,)),
    )
    plain = WithLoss().train()
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, foreach=False)

    def loop() -> None:
        plain_optimizer.zero_grad()
        for x, y in zip(pixels.chunk(accumulation), labels.chunk(accumulation)):
            plain(x, y).backward()
        for parameter in plain.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(accumulation)
        plain_optimizer.step()

    model = WithLoss().train()
    options = poptorch.Options()
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=1e-4))
    loop()  # both warm
    executor(pixels, labels)
    ratios = []
    for number in range(arguments.rounds):
        pair = (loop, (), executor, (pixels, labels)) if number % 2 == 0 else (executor, (pixels, labels), loop, ())
        first, second = seconds(pair[0], *pair[1]), seconds(pair[2], *pair[3])
        ratios.append(second / first if number % 2 == 0 else first / second)
        print(f"pair {number + 1}: executor {ratios[-1]:.3f} x the plain loop")
    extra = [
        import_seconds("import torch; t = time.perf_counter(); import ipu_trainer.simulator")
        for _ in range(arguments.rounds)
    ]
    result = {
        "executor_over_loop": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "import_seconds_beyond_torch": {"median": statistics.median(extra), "min": min(extra), "max": max(extra)},
    }
    print(
        f"executor over loop: median {result['executor_over_loop']['median']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    print(f"import beyond torch: median {statistics.median(extra):.3f} s ({min(extra):.3f} to {max(extra):.3f})")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
