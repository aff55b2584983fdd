"""GPT-2 on a GPU: IPUTrainer against Trainer in its usual form, in its best, and with compiled layers, in turns.

    python benchmarks/gpt2_gpu.py --rounds 2 --steps 40 --output gpt2.json

All train GPT-2 small from scratch (124 M parameters, no dropout unless named) on rows of `--length` tokens in bfloat16, through
the stock loop with its clipping and fused AdamW. Throughput is in tokens/s after `--warm-up` steps.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from timing import SteadyRate, in_turns, report
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.atomic import write_json


class Rows(torch.utils.data.Dataset):
    """Random tokens: their values do not change how long a step takes."""

    def __init__(self, count, length):
        self.rows = torch.randint(0, 50257, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def model_of(dropout):
    transformers.set_seed(0)
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def variant(trainer_class, arguments_class, batch, length, steps, warm_up, dropout=0.0, compiled=False, **changes):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            values = {
                "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": batch, "bf16": True,
                "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1000,
                "dataloader_num_workers": 2, **changes,
            }  # fmt: skip
            model = model_of(dropout)
            if compiled:
                for layer in model.transformer.h:
                    layer.compile()
            meter = SteadyRate(batch * length, warm_up)
            trainer = trainer_class(
                model=model,
                args=arguments_class(**values),
                train_dataset=Rows(batch * steps, length),
                callbacks=[meter],
            )
            trainer.train()
            return meter.rate

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row, at most 1,024")
    parser.add_argument("--seconds", type=float, default=400.0, help="no new round after so many")
    parser.add_argument("--output", type=Path, default=Path("gpt2_gpu.json"))
    given = parser.parse_args()
    if not 1 < given.length <= 1024:
        parser.error(f"--length {given.length}: GPT-2 has positions for 2 to 1,024 tokens.")
    common = (given.length, given.steps, given.warm_up)
    shared = {"logging_nan_inf_filter": False, "backend": "host"}
    best = {"tf32": True, "optim": "adamw_torch_fused", "logging_nan_inf_filter": False}
    variants = {
        "IPUTrainer": variant(IPUTrainer, IPUTrainingArguments, given.batch, *common, **shared),
        "IPUTrainer, bfloat16 residual": variant(
            IPUTrainer, IPUTrainingArguments, given.batch, *common, bf16_residual=True, **shared
        ),
        "Trainer, its defaults in bf16, batch 8": variant(Trainer, TrainingArguments, 8, *common, dropout=0.1),
        "Trainer, best uncompiled": variant(Trainer, TrainingArguments, given.batch, *common, **best),
        "Trainer, best, each layer compiled": variant(
            Trainer, TrainingArguments, given.batch, *common, compiled=True, **best
        ),
    }
    rates, failed = in_turns(variants, given.rounds, given.seconds)
    flops = 6 * 124_439_808 + 12 * 12 * 768 * given.length
    text, about = report(rates, "IPUTrainer", flops, "tokens/s")
    print(text)
    write_json(
        given.output,
        {
            **about,
            "transformers": transformers.__version__,
            "batch": given.batch,
            "length": given.length,
            "failed": failed,
        },
    )


if __name__ == "__main__":
    main()
