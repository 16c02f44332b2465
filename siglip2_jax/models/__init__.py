"""The model: both towers, the decoder, and their sizes."""
