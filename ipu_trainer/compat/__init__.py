"""Every place where this package depends on the insides of another library, and every difference between its releases.

torch, transformers and accelerate change between the two supported stacks. What is private there, or renamed, is read here and
nowhere else, so that a new release is met in one folder.
"""
