"""Reading and writing whole program arrays inside the kernel.

bpf(2) reads or writes a single entry of a program array per call, and an array may have a million entries. So two small
programs are assembled and loaded once, and each run of BPF_PROG_TEST_RUN then handles many entries: the writer calls
bpf(2) for each entry from within the kernel, and the reader follows the kernel's own pointers from the caller's fd to
the array and copies program ids into a packet. Neither program has a map or keeps anything between two runs; they
act only on an fd of the process that runs them, so they give it no right that it does not have. The reader depends on
the layout of kernel structures, so it is assembled for the running kernel from its BTF and is used only after a
self-test has compared its answers with plain lookups. Where a program cannot be loaded or refuses to answer, `fallback`
does the same with one command per entry.

Modules: `programs` loads, tests and runs both programs; `writer`, `reader` and `map_lookup` assemble them.
"""
