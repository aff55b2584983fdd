"""The classifier with one output a finding, its losses, and the trainer that samples by finding."""
