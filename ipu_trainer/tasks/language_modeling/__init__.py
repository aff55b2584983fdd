"""Language models from scratch: GPT-2 and other causal ones, BERT and other masked ones."""
