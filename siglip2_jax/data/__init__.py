"""Where images and texts come from."""
