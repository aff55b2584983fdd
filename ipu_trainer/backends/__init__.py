"""Where a run computes: real IPUs, the simulator, or plain PyTorch."""
