"""Scores of a finding on unseen patients: AUROC with intervals, calibration, and labels that radiologists gave."""
