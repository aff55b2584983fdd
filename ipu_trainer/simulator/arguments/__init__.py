"""A call's arguments and results: nested values and their tensors, bound to forward's signature, split into micro-batches."""
