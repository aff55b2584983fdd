"""Scores of predictions: AUROC with patient-bootstrap intervals, calibration, thresholds, and comparison with radiologists."""
