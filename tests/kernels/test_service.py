"""The service as processes on the kernel that runs the tests: what an operator does first."""
