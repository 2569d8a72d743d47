"""What the JSON of the API looks like."""
