"""The HTTP API of a fleet."""
