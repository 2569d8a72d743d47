"""The page in a real browser, against the real service on the real kernel."""
