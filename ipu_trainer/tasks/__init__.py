"""One package per task; tasks do not know each other."""
