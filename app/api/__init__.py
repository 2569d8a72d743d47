"""HTTP. Knows FastAPI and pydantic, and no errno and no fd."""
