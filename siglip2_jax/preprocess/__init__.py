"""Images to patches and texts to token ids."""
