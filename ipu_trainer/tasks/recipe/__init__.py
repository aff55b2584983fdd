"""What the recipes of all tasks share: flags, checks before work, run.json and the resuming of a run."""
