"""What a trainer keeps and restores: checkpoints, random generators, Accelerate's state, a trainer as bytes."""
