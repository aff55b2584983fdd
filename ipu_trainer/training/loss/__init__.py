"""What a loss does with its samples, and how micro-batches therefore count in a weight update."""
