"""Where there is no I/O: decisions only."""
