"""The process that keeps the privileges, so that the one that speaks HTTP has none."""
