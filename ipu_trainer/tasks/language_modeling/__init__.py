"""Language models from scratch or further trained: causal (GPT-2) and masked (BERT, RoBERTa), on fixed-shape rows."""
