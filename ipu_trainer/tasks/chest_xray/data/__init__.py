"""Label tables and image files to a prepared data set, and from there to the micro-batches of a training."""
