"""What an evaluation leaves to be read: tables, plots, the model card, and one HTML page."""
