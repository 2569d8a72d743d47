"""What requests bring and what is answered, as pydantic models."""
