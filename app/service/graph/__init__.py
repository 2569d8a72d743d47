"""The graph of all jumps: which program jumps through which array to which program, and what follows from that."""
