"""Multi-label chest X-ray classification on NIH ChestX-ray14."""
