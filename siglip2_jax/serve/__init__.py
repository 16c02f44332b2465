"""Server: embeddings, labels with probabilities, ranking and search over HTTP."""
