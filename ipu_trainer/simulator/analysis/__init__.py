"""What a model costs on IPUs: stages, operations, bytes and timelines, measured while the simulator runs it."""
