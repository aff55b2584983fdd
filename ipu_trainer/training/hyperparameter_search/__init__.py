"""Hyper-parameter search with optuna, Ray Tune or wandb: checks before work, and trials of one trainer on any backend."""
