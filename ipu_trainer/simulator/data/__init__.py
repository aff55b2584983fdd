"""poptorch.DataLoader, and the process that prefetches for it."""
