"""One device: update safely, infer, report."""
