"""Training in plain PyTorch: micro-batches of an update computed together, and layers compiled."""
