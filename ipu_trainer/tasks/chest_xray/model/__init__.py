"""A ViT with one output a finding: its inputs, its losses, exact shortcuts of its first and last layer, and its trainer."""
