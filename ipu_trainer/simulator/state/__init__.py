"""What the device keeps between calls: its copies of the weights, and its random generators."""
