"""The device's floating-point numbers: float16 stored and rounded, types mixed in one operator, exceptions."""
