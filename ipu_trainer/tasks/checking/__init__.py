"""`ipu-trainer check PATH`: whether a prepared folder, a run, a model or a checkpoint is whole. It reads, and changes nothing."""
