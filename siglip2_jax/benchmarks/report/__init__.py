"""Reports of benchmark results beside published numbers."""
