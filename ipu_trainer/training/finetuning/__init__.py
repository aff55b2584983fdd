"""Options of fine-tuning: layer-wise learning rates, stochastic depth, a moving average of weights."""
