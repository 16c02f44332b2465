"""Training: state, step, optimizer, checkpoints, the loop."""
