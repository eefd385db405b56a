"""Passes: each a function from one representation of the model to the next, one per file."""
