"""The journal. Knows SQL, and nothing of the kernel."""
