"""From a label table and image files to a prepared data set, and from there to augmented micro-batches."""
