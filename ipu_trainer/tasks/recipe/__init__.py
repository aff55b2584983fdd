"""The recipe that all tasks share: flags, checks before training, and a run from its header to its report."""
