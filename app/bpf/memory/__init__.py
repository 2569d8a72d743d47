"""A kernel in memory, with the same errnos."""
