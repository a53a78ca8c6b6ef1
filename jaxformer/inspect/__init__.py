"""What a model does, as arrays: see `taps`."""
