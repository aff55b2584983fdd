"""IPUConfig, its profiles, and the batch arithmetic of all backends."""
