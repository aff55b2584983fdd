"""One forward pass under observation: whether it runs on the device, its block, its losses, and what an IPU cannot do of it."""
