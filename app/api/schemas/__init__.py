"""The JSON of requests and responses, as pydantic models. Docstrings and descriptions are in the OpenAPI document."""
