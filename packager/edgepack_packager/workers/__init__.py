"""Code that runs in fresh worker processes, one module per toolchain."""
