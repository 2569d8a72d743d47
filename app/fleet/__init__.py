"""The fleet's server: one table on many nodes, in waves."""
