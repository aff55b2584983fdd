"""Fused kernels for what a GPU's libraries do slowly in a ViT: an optional package, imported by acceleration/choices.py alone.

fused_layers() is the hook that puts them in. Each operator has two implementations: plain torch on a CPU, which defines what is
computed, and Triton on a GPU. torch.compile traces into them (`triton_op`), so it launches the kernels like its own.
"""

from ipu_trainer.training.acceleration.fused_kernels.vit_layers import fused_layers, supported_modules

__all__ = ["fused_layers", "supported_modules"]
