"""Training: state, step, optimizer, checkpoints, the loop, and the planner."""
