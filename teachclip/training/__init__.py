"""Training: the task, the loop, the optimizer, checkpoints."""
