"""Sweeps: runs of one config with several settings and seeds, and tables of what they score."""
