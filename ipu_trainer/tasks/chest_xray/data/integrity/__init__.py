"""Whether a prepared folder is what `prepare` wrote: digests, and whose files lie in it."""
