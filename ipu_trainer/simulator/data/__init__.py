"""poptorch.DataLoader and the process that loads ahead of it."""
