"""What makes a program believe that it imports the SDK: `import poptorch`, its private modules, `popart` and their names."""
