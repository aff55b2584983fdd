"""Every place where this package depends on the insides of another library, and every difference between its releases.

torch, transformers and accelerate change between the two supported stacks. What is private there, or renamed, is read here and
nowhere else, so that a new release is met in one folder: a new signature or private step of Trainer in stock_trainer.py, a renamed
argument in argument_names.py, another difference in transformers_versions.py, any other private part as an Internal (internals.py).
"""
