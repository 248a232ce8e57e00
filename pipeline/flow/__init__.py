"""A run from its arguments to its summary, and the two ways to call the stages."""
