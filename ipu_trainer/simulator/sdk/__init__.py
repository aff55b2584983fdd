"""The SDK's modules for programs that import them: `poptorch`, its private modules and `popart` resolve to the simulator."""
