"""What the device holds between calls: its copies of the weights, its generators, and numbers in its precision."""
