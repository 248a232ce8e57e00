"""A file becomes frames, and frames become patch rows, in a process that can be killed."""
