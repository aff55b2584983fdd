"""A model on IPUs, real or simulated: its executors, its optimizer, prediction and generation in fixed shapes."""
