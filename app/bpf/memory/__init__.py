"""The kernel port in memory, for tests and demonstrations without privileges.

It answers with the errnos of Linux; tests/bpf/test_contract.py runs the same tests on both. `kernel` has the commands,
`objects` the maps, programs, fds and pins, and `interpreter` runs programs for tail calls and test runs.
"""
