"""Training: the training loop, optimiser and learning-rate schedule, checkpoints, logging, and multiple processes."""
