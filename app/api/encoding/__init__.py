"""Fast JSON for responses that are frequent or long."""
