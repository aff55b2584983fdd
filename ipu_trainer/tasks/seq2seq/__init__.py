"""Sequence to sequence: T5 and BART on pairs of texts."""
