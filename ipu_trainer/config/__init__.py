"""IPUConfig, its profiles, and the batch arithmetic that every backend obeys."""
