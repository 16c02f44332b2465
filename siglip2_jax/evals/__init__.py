"""Evaluators: measurements that a config may use during training."""
