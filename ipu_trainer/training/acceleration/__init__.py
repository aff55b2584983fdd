"""Accelerations of training on the host: compiled layers, fused kernels, bfloat16, and no host-device synchronisation.

None changes what is computed, apart from rounding, and all of them are undone when training ends.
"""
