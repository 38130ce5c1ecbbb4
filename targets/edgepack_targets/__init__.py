"""What a model can run on: one plugin per runtime, and what host and device must do alike."""
