"""Capabilities, system call filters and the channel that processes with less rights share."""
