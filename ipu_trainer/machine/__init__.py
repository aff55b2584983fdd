"""Facts and schedules of the IPU: standard library only."""
