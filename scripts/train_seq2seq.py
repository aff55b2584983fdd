"""Train a T5 or BART to say what a Python function does, from the functions and docstrings that are installed here.

    python scripts/train_seq2seq.py --output run                                     # T5, 2 + 2 layers; 7 minutes on 2 cores
    python scripts/train_seq2seq.py --output run --model t5-small --pairs pairs.jsonl    # {"source": ..., "target": ...} a line

The same as `ipu-trainer train seq2seq`: every Seq2SeqTrainingArguments flag works.
"""

import sys

from ipu_trainer.cli import main

sys.exit(main(["train", "seq2seq", *sys.argv[1:]]))
