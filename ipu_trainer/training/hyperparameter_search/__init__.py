"""Hyper-parameter searches over one trainer, with optuna and with Ray Tune."""
