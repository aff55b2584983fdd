"""One executor from compilation to the outputs of a host step.

Compilation runs the model once, watched; the engine then runs micro-batches, accumulates gradients, updates weights and gathers
outputs.
"""
