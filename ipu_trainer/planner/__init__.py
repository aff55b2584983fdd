"""Memory and throughput of a configuration, predicted before anyone compiles it. It never trains."""
