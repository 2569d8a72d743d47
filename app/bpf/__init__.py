"""Access to the kernel's BPF objects.

`kernel` is the port: the commands of bpf(2) as methods on plain integers. `linux` implements it with the system call,
and `memory` without privileges, for tests and demonstrations. `bulk` reads and writes whole program arrays inside the
kernel. The rest of the service imports the port and gets one of the two implementations when it starts.
"""
