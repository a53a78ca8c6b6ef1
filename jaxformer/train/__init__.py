"""Training: the state, the step, the loop, and what they leave on disk."""
