"""What people read of an evaluation: the metrics table, plots, the model card, and report.html with its sections and figures."""
