"""Files in object stores and on disk, read by ranges; manifests of data sets."""
