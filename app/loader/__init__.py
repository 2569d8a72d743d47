"""Loading an eBPF object file with libbpf, in a process of its own for each file.

An object file is bytes of unknown origin, and libbpf parses it in C: a damaged one can crash it, or make it use memory
without end. So `process` is what runs in a confined process that ends after one file. `client` starts it, waits for it
and ends it. `files` reads object files, `messages` is what is said between the two sides. `libbpf`, `elf` and
`confinement` belong to the process.
"""
