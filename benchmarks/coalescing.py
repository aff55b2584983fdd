"""An IPU profile on a CPU or a GPU: IPUTrainer, which coalesces micro-batches, against stock Trainer, in turns.

    python benchmarks/coalescing.py --accumulation 32 --rounds 3 --output coalescing.json
    python benchmarks/coalescing.py --device cuda --model base --accumulation 128 --updates 6 --rounds 2

Both train the same ViT from the same weights on the same samples, micro-batch 1, SGD, for the same number of updates; the
time of a training is that of its loop after the first update (the first holds the comparison that decides it, and a
GPU's compilation). Prints the ratio of times by the clock, the ratio of processor time (what counts on a CPU that others use
too), and how far apart the weights end. --plain times micro-batches of usual sizes, where there is little or nothing to coalesce:
IPUTrainer should cost nothing there.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.atomic import write_json

SIZES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "nano": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256},
    "base": {},
}


class Clock(TrainerCallback):
    def __init__(self):
        self.begin = self.end = (0.0, 0.0)

    def on_step_end(self, args, state, control, **_):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.end = (time.perf_counter(), time.process_time())
        if state.global_step == 1:
            self.begin = self.end

    @property
    def seconds(self):
        """By the clock, and of the processor in all threads."""
        return tuple(end - begin for begin, end in zip(self.begin, self.end))


def train(ours, given, micro_batch, accumulation, samples):
    transformers.set_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=given.image_size, patch_size=16, **SIZES[given.model]))
    values = {
        "max_steps": given.updates, "per_device_train_batch_size": micro_batch, "learning_rate": 1e-3, "optim": "sgd",
        "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1000, "max_grad_norm": 0.0,
        "use_cpu": given.device == "cpu", "bf16": given.device == "cuda", "dataloader_pin_memory": False,
    }  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if ours:
            args = IPUTrainingArguments(output_dir=folder, backend="host", **values)
            config = IPUConfig(gradient_accumulation_steps=accumulation)
            trainer = IPUTrainer(model, args, ipu_config=config, train_dataset=samples, callbacks=[clock])
            decided = trainer.execution.decide_coalescing()
        else:
            args = TrainingArguments(output_dir=folder, gradient_accumulation_steps=accumulation, **values)
            trainer, decided = Trainer(model, args, train_dataset=samples, callbacks=[clock]), None
        trainer.train()
    weights = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    return clock.seconds, weights, decided


def compare(given, micro_batch, accumulation):
    count = micro_batch * accumulation * given.updates
    pixels = torch.randn(
        min(count, 256), 3, given.image_size, given.image_size, generator=torch.Generator().manual_seed(0)
    )
    samples = [{"pixel_values": pixels[index % len(pixels)], "labels": index % 2} for index in range(count)]
    pairs, difference, decided = [], 0.0, None
    for number in range(given.rounds):
        both = {}
        for ours in (False, True) if number % 2 == 0 else (True, False):  # who comes first may have it better
            both[ours] = train(ours, given, micro_batch, accumulation, samples)
        (literal, expected, _), (mine, weights, decided) = both[False], both[True]
        pairs.append((literal, mine))
        difference = max(float((weights[name] - value).abs().max()) for name, value in expected.items())
    ratios, processor = ([literal[kind] / mine[kind] for literal, mine in pairs] for kind in (0, 1))
    images = micro_batch * accumulation * (given.updates - 1)
    rates = [images / statistics.median(seconds[0] for seconds in side) for side in zip(*pairs)]
    print(
        f"{micro_batch:>4} x {accumulation:<4} literal Trainer {rates[0]:9.1f} images/s, IPUTrainer {rates[1]:9.1f}: "
        f"{told_of(ratios)} by the clock, {told_of(processor)} of the processor, passes of {decided.factor}, weights "
        f"{difference:.1e} apart",
        flush=True,
    )
    return {
        "micro_batch": micro_batch, "accumulation": accumulation, "seconds": pairs, "ratios": ratios,
        "processor_ratios": processor, "images_per_second": rates, "factor": decided.factor, "reason": decided.reason,
        "largest_weight_difference": difference,
    }  # fmt: skip


def told_of(ratios):
    ordered = sorted(ratios)
    # Ranks between which the true median lies 19 times in 20 (a sign test).
    away = int(max(0, len(ordered) / 2 - 0.98 * len(ordered) ** 0.5))
    interval = f"{ordered[away]:.3f} to {ordered[-1 - away]:.3f}"
    return f"{statistics.median(ratios):.3f} x (median within {interval}, all {ordered[0]:.3f} to {ordered[-1]:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="nano", choices=tuple(SIZES))
    parser.add_argument("--image-size", type=int, default=0, help="default 64 on a CPU, 224 on a GPU")
    parser.add_argument("--accumulation", type=int, default=32)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="also 8 x 1, 32 x 1 and 8 x 4")
    parser.add_argument("--only", default="", help="one setting, as in 8x1")
    parser.add_argument("--output", type=Path, default=Path("coalescing.json"))
    given = parser.parse_args()
    given.image_size = given.image_size or (64 if given.device == "cpu" else 224)
    settings = [(1, given.accumulation)] + ([(8, 1), (32, 1), (8, 4)] if given.plain else [])
    if given.only:
        settings = [tuple(int(number) for number in given.only.split("x"))]
    results = [compare(given, *setting) for setting in settings]
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{torch.get_num_threads()} threads"
    about = {"device": where, "model": given.model, "image_size": given.image_size, "torch": torch.__version__}
    write_json(given.output, {**about, "transformers": transformers.__version__, "results": results})


if __name__ == "__main__":
    main()
