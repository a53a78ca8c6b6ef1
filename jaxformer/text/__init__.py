"""Text to arrays: tokenizers, documents, token stores, packing and batches. Numpy only."""
