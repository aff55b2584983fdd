"""A task of one's own, without a task package: do two sentences say the same? Chapter 3.3 of Hugging Face's course, offline.

    python scripts/classify_sentence_pairs.py --output_dir run
    python scripts/classify_sentence_pairs.py --output_dir run --backend simulated --ipu_config one_ipu

Sentences are made from a grammar, a small BERT is trained from scratch, and compute_metrics reports accuracy and F1. About a
minute on 2 cores to an accuracy far above the half that guessing gives. Every TrainingArguments flag works.
"""

import ipu_trainer  # noqa: F401  # before torch, whose threads then sleep while they wait for each other

# isort: split
import random
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

from ipu_trainer import IPUTrainer, IPUTrainingArguments

NAMES = ["anna", "ben", "carl", "dora", "emil", "fay"]
GOODS = ["apples", "books", "cups", "drums"]
LENGTH = 20


def make_pairs(number: int, seed: int) -> datasets.Dataset:
    """Two sentences; label 1 where the second says what the first says, 0 where it speaks of other goods."""
    draw = random.Random(seed)
    rows: dict = {"sentence1": [], "sentence2": [], "labels": []}
    for _ in range(number):
        seller, buyer = draw.sample(NAMES, 2)
        goods, same = draw.choice(GOODS), draw.random() < 0.5
        told = goods if same else draw.choice([other for other in GOODS if other != goods])
        rows["sentence1"].append(f"{seller} sold {goods} to {buyer}")
        rows["sentence2"].append(f"{buyer} bought {told} from {seller}")
        rows["labels"].append(int(same))
    return datasets.Dataset.from_dict(rows)


def make_tokenizer(words: list) -> BertTokenizerFast:
    """BERT's tokenizer with these words as its vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(words))
        return BertTokenizerFast.from_pretrained(folder)


def compute_metrics(prediction) -> dict:
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": accuracy_score(prediction.label_ids, chosen), "f1": f1_score(prediction.label_ids, chosen)}


def main(argv) -> dict:
    args = IPUTrainingArguments.from_flags(
        argv, num_train_epochs=6.0, learning_rate=1e-3, per_device_train_batch_size=8, per_device_eval_batch_size=32,
        optim="adamw_torch", eval_strategy="epoch", logging_steps=25, save_strategy="no", report_to=["none"], ipu_config="one_ipu",
    )  # fmt: skip

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, *GOODS, "sold", "bought", "to", "from"]
    tokenizer = make_tokenizer(words)

    def tokenize(batch):
        return tokenizer(
            batch["sentence1"], batch["sentence2"], padding="max_length", max_length=LENGTH, truncation=True
        )

    train, validation = (make_pairs(n, seed).map(tokenize, batched=True) for n, seed in ((2000, 0), (300, 1)))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.1,
    )
    set_seed(args.seed)  # before the model is drawn
    trainer = IPUTrainer(
        model=BertForSequenceClassification(config),
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return trainer.evaluate()


if __name__ == "__main__":
    metrics = main(sys.argv[1:])
    print(f"accuracy {metrics['eval_accuracy']:.3f}, F1 {metrics['eval_f1']:.3f} (guessing: 0.5)")
