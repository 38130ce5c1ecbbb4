"""What runs in a worker process: one step, then it ends. Knows no plan and no bundle."""
