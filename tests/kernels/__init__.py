"""The tests on other kernels, each booted under qemu: `python -m tests.kernels`."""
