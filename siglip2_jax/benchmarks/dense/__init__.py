"""Dense prediction: segmentation, depth and normals from patch tokens."""
