"""Workers that fill the buffers of batches, ahead of the training process."""
