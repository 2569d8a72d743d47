"""Who may do what. Knows nothing of HTTP, and nothing of the kernel."""
