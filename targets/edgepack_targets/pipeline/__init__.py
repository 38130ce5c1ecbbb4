"""What host and device must do alike: preprocess, postprocess, agreement."""
