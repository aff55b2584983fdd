"""Kernels of this project for what a GPU's libraries do slowly in a ViT, and where they are put in (rewrite.py).

Each is an operation with two implementations: plain torch on a CPU, which says what is computed, and Triton on a GPU. A compiler
looks into them, so these kernels are launched as its own are.
"""
