"""Training: one loop, the optimiser and its schedule, checkpoints, logs, processes."""
