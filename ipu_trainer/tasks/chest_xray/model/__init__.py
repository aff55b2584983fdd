"""An image model with one output a finding: its checkpoint, inputs and losses, exact shortcuts of two layers, and its trainer."""
