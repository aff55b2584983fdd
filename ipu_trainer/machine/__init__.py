"""Hardware, schedules and placements of IPUs, as values that all other packages use. Standard library only."""
