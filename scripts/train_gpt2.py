"""Train a GPT-2 from scratch on the Python code that is installed here, and see what it writes.

    python scripts/train_gpt2.py --output run                                # 3.7 M parameters and a small vocabulary
    python scripts/train_gpt2.py --output run --model gpt2-small --tokenizer gpt2 --corpus my_texts     # 124 M, for a GPU

The same as `ipu-trainer train language-modeling`: every TrainingArguments flag works. Ends with the perplexity on packages
that were not trained on, beside that of word frequencies alone.
"""

import sys

from ipu_trainer.cli import main

sys.exit(main(["train", "language-modeling", *sys.argv[1:]]))
