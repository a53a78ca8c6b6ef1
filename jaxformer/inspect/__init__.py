"""What a model does, as arrays: `taps`, `attention`, `pieces`, `embeddings`, `predictions`, `training`."""
