"""Data for training: sources of images and texts, and the pipeline that makes batches."""
