"""From the configuration to a listening process."""
