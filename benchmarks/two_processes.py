"""One process against several, through torchrun: the same recipe, the same micro-batch a process, in turns.

    python benchmarks/two_processes.py --processes 2 --rounds 3 --output two_processes.json

On GPUs each process has one of them and trains ViT-B/16; elsewhere each has one thread and trains a tiny ViT, and processes
talk through gloo. Prints images a second of all processes together, and the speed-up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification
from vit_gpu import HALF, NUM_FINDINGS, base, prepared

from ipu_trainer.atomic import write_json
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.tasks.chest_xray.data.augmentation import Augmentation
from ipu_trainer.tasks.chest_xray.data.dataset import ChestXrayDataset
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator
from ipu_trainer.tasks.chest_xray.model.losses import FindingLoss
from ipu_trainer.training.arguments import IPUTrainingArguments


def small():
    """12 layers of width 96 at 224 px: enough work between two exchanges of gradients to be worth a second core."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(hidden_size=96, num_hidden_layers=12, num_attention_heads=3, intermediate_size=384, patch_size=32,
                  num_labels=NUM_FINDINGS)
    )  # fmt: skip


class Rate(TrainerCallback):
    def __init__(self, samples_per_step, warm_up):
        self.samples_per_step, self.warm_up, self.rate = samples_per_step, warm_up, 0.0

    def on_step_end(self, args, state, control, **_):
        if state.global_step in (self.warm_up, state.max_steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self.warm_up:
            self.begin = time.perf_counter()
        if state.global_step == state.max_steps:
            steps = state.global_step - self.warm_up
            self.rate = steps * self.samples_per_step / (time.perf_counter() - self.begin)


def of_one_process(given):
    """What torchrun starts: trains, and the first process writes the rate of all."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    dataset = prepared_in(given.folder, given.batch * given.steps * int(os.environ["WORLD_SIZE"]))
    with tempfile.TemporaryDirectory() as folder:
        args = IPUTrainingArguments(
            **compat.training_defaults(
                output_dir=folder, max_steps=given.steps, per_device_train_batch_size=given.batch, bf16=on_gpu,
                use_cpu=not on_gpu, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1000,
                remove_unused_columns=False, backend="host", logging_nan_inf_filter=False,
                dataloader_pin_memory=on_gpu, ddp_find_unused_parameters=False,
            )
        )  # fmt: skip
        meter = Rate(given.batch * args.world_size, given.warm_up)
        trainer = ChestXrayTrainer(
            model=base() if on_gpu else small(),
            args=args,
            train_dataset=dataset,
            data_collator=ChestXrayCollator(HALF, Augmentation(), 0),
            finding_loss=FindingLoss("bce", 0.5, None),
            callbacks=[meter],
        )
        trainer.train()
        if trainer.is_world_process_zero():
            write_json(given.folder / "rate.json", {"rate": meter.rate, "processes": args.world_size})


def prepared_in(folder, count):
    """The first `count` samples of the data set that the parent made, over and over."""
    import numpy as np
    from vit_gpu import labels_of

    rows = np.arange(count) % json.loads((folder / "made.json").read_text())
    table = {"patient_id": [str(row) for row in range(count)]}
    findings = [str(number) for number in range(NUM_FINDINGS)]
    return ChestXrayDataset(folder / "pixels.u8", rows, labels_of(count), table, findings)


def rate_of(processes, given, folder):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__,
        "--worker", "--folder", str(folder), "--batch", str(given.batch), "--steps", str(given.steps),
        "--warm-up", str(given.warm_up),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "rate.json").read_text())
    assert found["processes"] == processes
    return found["rate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256 if torch.cuda.is_available() else 32, help="of one process")
    parser.add_argument("--steps", type=int, default=40 if torch.cuda.is_available() else 24)
    parser.add_argument("--warm-up", type=int, default=15 if torch.cuda.is_available() else 4)
    parser.add_argument("--output", type=Path, default=Path("two_processes.json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        of_one_process(given)
        return
    if torch.cuda.is_available() and torch.cuda.device_count() < given.processes:
        parser.error(f"--processes {given.processes}, but there are {torch.cuda.device_count()} GPUs: one a process.")
    rates = {1: [], given.processes: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder, made = Path(scratch), 1024
        prepared(folder, made)
        write_json(folder / "made.json", made)
        for _ in range(given.rounds):
            for processes, values in rates.items():
                values.append(rate_of(processes, given, folder))
                print(f"{processes} process(es): {values[-1]:,.1f} images/s", flush=True)
    ratios = [many / one for one, many in zip(rates[1], rates[given.processes])]
    print(
        f"{given.processes} processes: {statistics.median(ratios):.2f} times one "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {given.rounds} pairs)"
    )
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread a process"
    write_json(given.output, {"device": name, "torch": torch.__version__, "rates": rates, "ratios": ratios})


if __name__ == "__main__":
    main()
