"""A tiny model on all cores, alone and beside processes that need them: IPUTrainer, stock Trainer, and Trainer on one thread.

    python benchmarks/shared_cores.py --busy 2 --rounds 5

Prints weight updates a second of a ViT with two layers, 24 wide, at 32 px with batch 4, in turns, and their ratios. Trainer's
threads wait asleep here as IPUTrainer's do (GOMP_SPINCOUNT); in a program that does not import ipu_trainer they spin.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments  # before torch: it sets how threads wait

import torch  # isort: skip
from timing import in_turns, report
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


def updates_per_second(trainer_class, arguments_class, threads, updates, **more):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8
    )
    images = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 2} for index in range(256)]
    given = torch.get_num_threads()
    if threads != given:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(output_dir=folder, max_steps=updates, per_device_train_batch_size=4, report_to=[],
                               save_strategy="no", logging_strategy="no", disable_tqdm=True)  # fmt: skip
        trainer = trainer_class(model=ViTForImageClassification(config), args=args, train_dataset=images, **more)
        rate = trainer.train().metrics["train_steps_per_second"]
    if threads != given:
        torch.set_num_threads(given)
    return rate


@contextlib.contextmanager
def busy_processes(number):
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=300)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    ours = (IPUTrainer, IPUTrainingArguments, threads, options.updates)
    stock = (Trainer, TrainingArguments)
    variants = {
        "IPUTrainer": lambda: updates_per_second(*ours, ipu_config=IPUConfig()),
        f"Trainer, {threads} threads": lambda: updates_per_second(*stock, threads, options.updates),
        "Trainer, 1 thread": lambda: updates_per_second(*stock, 1, options.updates),
    }
    for busy in (0, options.busy):
        with busy_processes(busy):
            rates, _ = in_turns(variants, options.rounds)
        table, _ = report(rates, "IPUTrainer", None, "updates/s")
        print(f"\nbeside {busy} busy processes\n{table}\n")


if __name__ == "__main__":
    main()
