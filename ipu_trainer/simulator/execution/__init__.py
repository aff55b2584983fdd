"""One executor, from compilation to the outputs of a host step.

Compilation runs forward once, under observation. The engine then runs micro-batches, accumulates gradients, updates weights and
gathers outputs.
"""
