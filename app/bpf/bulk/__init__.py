"""Whole tables, read and written inside the kernel."""
