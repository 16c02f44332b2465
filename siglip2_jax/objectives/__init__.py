"""Objectives that a step minimises: one file an objective, all behind one protocol."""
