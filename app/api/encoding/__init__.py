"""Fast JSON for answers that are frequent or long."""
