"""Where the kernel differs from the journal."""
