"""The kernel: bpf(2) for program arrays, for real (`linux`) and without privileges (`memory`)."""
