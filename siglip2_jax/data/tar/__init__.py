"""Webdataset tars: their members, samples, indices and blocks."""
