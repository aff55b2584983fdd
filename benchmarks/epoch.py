"""One epoch of the recipe on a CPU against a plain PyTorch loop over the same batches, in turns.

    python benchmarks/epoch.py --data PREPARED --model MODEL --micro-batches 6 --rounds 3 --output epoch.json

Both do the same forward, loss, backward, clipping and AdamW update on the same micro-batches, from the same prepared store;
the plain loop has no Trainer, callbacks, checkpoints or augmentation other than the collator's. Prints the ratio of times.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ipu_trainer.atomic import write_json
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.known_labels import prevalence
from ipu_trainer.tasks.chest_xray.model.checkpoint import load_model
from ipu_trainer.tasks.chest_xray.model.chest_xray_trainer import ChestXrayTrainer
from ipu_trainer.tasks.chest_xray.model.inputs import ChestXrayCollator, load_normalisation
from ipu_trainer.tasks.chest_xray.recipe_arguments import finding_loss, parse_arguments


def trainer_of(data, model_path, num_micro_batches, scratch):
    flags = [
        "--data", str(data.folder), "--model", model_path, "--output", scratch, "--use_cpu", "True", "--disable_tqdm", "True",
        "--max_steps", str(num_micro_batches), "--eval_strategy", "no", "--save_strategy", "no", "--logging_strategy", "no",
    ]  # fmt: skip
    recipe, args = parse_arguments(flags)
    train_set = data.split("train")
    model = load_model(model_path, data.findings, prevalence(train_set.labels)).model
    normalisation = load_normalisation(model_path, data.size, data.manifest["resample"])
    trainer = ChestXrayTrainer(
        model=model,
        args=args,
        train_dataset=train_set,
        data_collator=ChestXrayCollator(normalisation, recipe.augmentation, args.seed),
        finding_loss=finding_loss(recipe, args, train_set),
    )
    return trainer, args


def with_trainer(data, model_path, num_micro_batches):
    with tempfile.TemporaryDirectory() as scratch:
        trainer, _ = trainer_of(data, model_path, num_micro_batches, scratch)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def with_plain_loop(data, model_path, num_micro_batches):
    with tempfile.TemporaryDirectory() as scratch:
        trainer, args = trainer_of(data, model_path, num_micro_batches, scratch)
        model, loss_of = trainer.model, trainer.finding_loss
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        model.train()
        started = time.perf_counter()
        for number, batch in enumerate(trainer.get_train_dataloader()):
            if number == num_micro_batches:
                break
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(pixel_values=batch["pixel_values"]).logits
            loss_of(logits, batch["labels"]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--micro-batches", type=int, default=6, help="of 32 images; 26 are an epoch of 847")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("epoch.json"))
    arguments = parser.parse_args()
    data = load_prepared(arguments.data)
    with_plain_loop(data, arguments.model, 1)  # first touch of files and kernels
    pairs = []
    for _ in range(arguments.rounds):
        pairs.append([run(data, arguments.model, arguments.micro_batches) for run in (with_trainer, with_plain_loop)])
        print(f"recipe {pairs[-1][0]:.1f} s, plain loop {pairs[-1][1]:.1f} s", flush=True)
    ratios = [mine / plain for mine, plain in pairs]
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    write_json(arguments.output, {"seconds": pairs, "ratios": ratios, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
