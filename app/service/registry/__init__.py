"""What the service holds, by name."""
