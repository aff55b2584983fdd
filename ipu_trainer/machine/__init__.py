"""Facts and schedules of the IPU: decided here, obeyed by everything above. Standard library only."""
